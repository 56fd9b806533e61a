"""Which items a request may get: those its filter allows, less those it leaves out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from service.observability import metrics


@dataclass(frozen=True)
class Selection:
    """The item rows a request may get.

    Attributes:
        num_items: N.
        excluded: rows left out, sorted, unique. Shape: (E,), int64.
        is_allowed: what the filter allows, None for everything. Shape: (N,), bool.
    """

    num_items: int
    excluded: np.ndarray
    is_allowed: np.ndarray | None = None

    @property
    def num_allowed(self) -> int:
        """How many rows are left."""
        if self.is_allowed is None:
            return self.num_items - len(self.excluded)
        return int(np.count_nonzero(self.is_allowed)) - int(np.count_nonzero(self.is_allowed[self.excluded]))

    def keep(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows that the request may get, in their order. Shape: (n,) -> (<= n,), int64."""
        if self.is_allowed is not None:
            rows = rows[self.is_allowed[rows]]
        return rows[~np.isin(rows, self.excluded)] if len(self.excluded) else rows

    def without(self, rows: np.ndarray) -> Selection:
        """The same, with more rows left out."""
        return replace(self, excluded=np.union1d(self.excluded, rows.astype(np.int64)))


class FilterRows:
    """The rows of filters, kept for the next request that filters alike. For any thread.

    Args:
        rows_of: the rows that a canonical filter allows. Shape: (N,), bool.
        max_bytes: memory for them, 1 byte per item each; at least one is kept.
    """

    def __init__(self, rows_of: Callable[[str], np.ndarray], max_bytes: int) -> None:
        self._rows_of = rows_of
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()  # least recently used first

    def __call__(self, canonical: str) -> np.ndarray:
        """Shape: (N,), bool; not to be written to."""
        with self._lock:
            is_kept = canonical in self._kept
            metrics.FILTER_LOOKUPS.labels(kind="kept" if is_kept else "computed").inc()
            if is_kept:
                self._kept.move_to_end(canonical)
                return self._kept[canonical]
        rows = self._rows_of(canonical)
        with self._lock:
            self._kept[canonical] = rows
            while len(self._kept) > 1 and len(self._kept) * rows.nbytes > self._max_bytes:
                self._kept.popitem(last=False)
        return rows
