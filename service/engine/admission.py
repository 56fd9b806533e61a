"""Bounds the beams in work; what does not fit waits a moment in a queue, and is refused after that."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.errors import EngineOverloaded
from service.observability import metrics

SMOOTHING = 0.1  # weight of the newest request in the running mean


@dataclass(eq=False)
class _Waiting:
    beam_rows: int
    is_let_in: asyncio.Future[None] = field(repr=False)


class Admission:
    """Counts beam rows in flight, and lets the next ones in as they arrived.

    Args:
        max_beam_rows: bound on their sum over all requests in work, and on that of all that wait.
        queue_s: longest wait in seconds; 0 refuses at once. A short one evens out bursts; a long one only
            makes everybody late.
    """

    def __init__(self, max_beam_rows: int, *, queue_s: float = 0.0) -> None:
        self._max_beam_rows = max_beam_rows
        self._queue_s = queue_s
        self._beam_rows = 0
        self._queue: deque[_Waiting] = deque()
        self._mean_s = 0.0

    @asynccontextmanager
    async def reserve(self, beam_rows: int) -> AsyncIterator[None]:
        """Hold `beam_rows` during a block.

        Raises:
            EngineOverloaded: they do not fit in time; `retry_after_s` follows from how long requests take
                now.
        """
        if self._queue or not self._fits(beam_rows):
            await self._wait(beam_rows)
        else:
            self._hold(beam_rows)
        started = time.monotonic()
        try:
            yield
        finally:
            self._mean_s += SMOOTHING * (time.monotonic() - started - self._mean_s)
            self._release(beam_rows)

    async def _wait(self, beam_rows: int) -> None:
        """Returns holding the rows."""
        num_waiting = sum(waiting.beam_rows for waiting in self._queue)
        if not self._queue_s or num_waiting + beam_rows > self._max_beam_rows:
            raise self._refusal()
        waiting = _Waiting(beam_rows, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        metrics.QUEUED_REQUESTS.inc()  # not set: there may be one admission per bundle being served
        try:
            await asyncio.wait({waiting.is_let_in}, timeout=self._queue_s)
        except asyncio.CancelledError:
            self._leave(waiting)
            if waiting.is_let_in.done():
                self._release(beam_rows)
            raise
        self._leave(waiting)
        if not waiting.is_let_in.done():
            raise self._refusal()

    def _leave(self, waiting: _Waiting) -> None:
        metrics.QUEUED_REQUESTS.dec()
        if waiting in self._queue:
            self._queue.remove(waiting)
            self._let_in()  # it may have stood in the way of narrower ones

    def _release(self, beam_rows: int) -> None:
        self._hold(-beam_rows)
        self._let_in()

    def _let_in(self) -> None:
        """Give what is free to those who wait, in order: a wide request is not overtaken for ever."""
        while self._queue and self._fits(self._queue[0].beam_rows):
            waiting = self._queue.popleft()
            self._hold(waiting.beam_rows)
            waiting.is_let_in.set_result(None)

    def _fits(self, beam_rows: int) -> bool:
        return self._beam_rows + beam_rows <= self._max_beam_rows

    def _refusal(self) -> EngineOverloaded:
        metrics.OVERLOADED.inc()
        return EngineOverloaded(
            f"{self._beam_rows} beams are in work and {self._max_beam_rows} is the limit; "
            "come back in a moment or ask for a smaller beam_width",
            retry_after_s=float(max(1, math.ceil(self._mean_s))),
        )

    def _hold(self, beam_rows: int) -> None:
        self._beam_rows += beam_rows
        metrics.INFLIGHT_BEAM_ROWS.inc(beam_rows)
