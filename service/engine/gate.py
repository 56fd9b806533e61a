"""Bounds the beams that are in an engine at once; the others wait in the order they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class BeamGate:
    """Lets requests in while the sum of their beams stays within a bound.

    What an engine decodes in one step blocks that step, so this bounds how long a step can take.

    Args:
        max_beam_rows: the bound; a request that is larger by itself goes in alone.
    """

    def __init__(self, max_beam_rows: int) -> None:
        self._max_beam_rows = max_beam_rows
        self._inside = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, beam_rows: int) -> AsyncIterator[None]:
        """Wait for a place, and keep it during a block."""
        if self._waiting or not self._fits(beam_rows):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((beam_rows, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave(beam_rows)  # it was let in while it gave up
                else:
                    self._admit()  # it may have stood before smaller ones
                raise
        else:
            self._inside += beam_rows
        try:
            yield
        finally:
            self._leave(beam_rows)

    def _fits(self, beam_rows: int) -> bool:
        return not self._inside or self._inside + beam_rows <= self._max_beam_rows

    def _leave(self, beam_rows: int) -> None:
        self._inside -= beam_rows
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            beam_rows, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()  # it gave up
                continue
            if not self._fits(beam_rows):
                return
            self._waiting.popleft()
            self._inside += beam_rows
            turn.set_result(None)
