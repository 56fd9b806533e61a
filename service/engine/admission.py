"""Bounds the beams in work, so that an overload is refused early instead of queueing for ever."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import EngineOverloaded
from service.observability import metrics

SMOOTHING = 0.1  # weight of the newest request in the running mean


class Admission:
    """Counts beam rows in flight.

    Args:
        max_beam_rows: bound on their sum over all requests.
    """

    def __init__(self, max_beam_rows: int) -> None:
        self._max_beam_rows = max_beam_rows
        self._beam_rows = 0
        self._mean_s = 0.0

    @contextmanager
    def reserve(self, beam_rows: int) -> Iterator[None]:
        """Hold `beam_rows` during a block.

        Raises:
            EngineOverloaded: they do not fit; `retry_after_s` follows from how long requests take now.
        """
        if self._beam_rows + beam_rows > self._max_beam_rows:
            raise EngineOverloaded(
                f"{self._beam_rows} beams are in work and {self._max_beam_rows} is the limit; "
                "come back in a moment or ask for a smaller beam_width",
                retry_after_s=float(max(1, math.ceil(self._mean_s))),
            )
        self._hold(beam_rows)
        started = time.monotonic()
        try:
            yield
        finally:
            self._hold(-beam_rows)
            self._mean_s += SMOOTHING * (time.monotonic() - started - self._mean_s)

    def _hold(self, beam_rows: int) -> None:
        self._beam_rows += beam_rows
        metrics.INFLIGHT_BEAM_ROWS.set(self._beam_rows)
