"""How many different items were recommended in the last hour, without remembering which."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import numpy as np

WINDOW_MIN = 60
CELLS_PER_ITEM = 4


class Coverage:
    """A table of hashed items with the minute each was recommended last (linear counting).

    Args:
        num_items: of the catalogue, about; sizes the table, 16 bytes an item.
        clock: seconds.
    """

    def __init__(self, num_items: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._mask = (1 << max(10, (CELLS_PER_ITEM * num_items - 1).bit_length())) - 1
        self._minute = np.zeros(self._mask + 1, dtype=np.uint32)  # 0: never

    def note(self, item_ids: Iterable[str]) -> None:
        """These were recommended now."""
        now = self._now()
        for item_id in item_ids:
            self._minute[hash(item_id) & self._mask] = now

    def num_items(self) -> float:
        """Different items in the last hour, estimated from the share of cells that were hit."""
        num_cells = len(self._minute)
        num_hit = int(np.count_nonzero(self._minute > max(0, self._now() - WINDOW_MIN)))
        return num_cells * -math.log1p(-min(num_hit, num_cells - 1) / num_cells)

    def _now(self) -> int:
        return 1 + int((self._clock() - self._started) / 60)
