"""Which item rows a request may reach, answered for any trie node in O(log E).

A node covers one contiguous range of item rows, so "how many allowed items are under this node?"
is a difference of two prefix counts: the filter's prefix sums minus the excluded rows before each
end of the range. Excluded rows are intersected with the filter first, so that nothing is
subtracted twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch

DEFAULT_CACHE_BYTES = 256 * 2**20
EVERYTHING = ""  # the canonical form of no filter at all


class FilterSums:
    """Prefix sums of the filters in use, 4 bytes per item each, in one block of memory.

    The block never moves, so that a recorded CUDA graph may point into it. The least recently used
    filter makes room for a new one; a batch of more filters than fit gets a block of its own.

    Args:
        num_items: N.
        rows_of: the rows that a canonical filter allows. Shape: (N,), bool.
        max_bytes: size of the block; at least one filter is kept.
        device: where it lies. On a CPU its memory is taken as it is first written.
    """

    def __init__(
        self,
        num_items: int,
        rows_of: Callable[[str], np.ndarray],
        *,
        max_bytes: int = DEFAULT_CACHE_BYTES,
        device: torch.device | str = "cpu",
    ) -> None:
        self._rows_of = rows_of
        self._num_items = num_items
        self._capacity = max(1, max_bytes // (4 * (num_items + 1)))
        self._device = device
        self._visible: np.ndarray | None = None  # (N,), bool; None: nothing is hidden
        self._slots: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._block: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the filters kept now."""
        return 4 * (self._num_items + 1) * len(self._slots)

    def hide(self, rows: np.ndarray) -> None:
        """Leave these rows out of every filter, and of no filter too. Shape: (H,), int64."""
        self._slots.clear()
        self._visible = None
        if len(rows):
            self._visible = np.ones(self._num_items, dtype=bool)
            self._visible[rows] = False

    def of(self, filters: Sequence[str]) -> tuple[torch.Tensor | None, list[int]]:
        """Prefix sums for the requests of a batch.

        Args:
            filters: canonical filter of every request, `EVERYTHING` for none.

        Returns:
            Sums, shape (F, N + 1), int32, None if no request needs any; and the index of every
            request's filter, -1 for none.
        """
        wanted = [f for f in dict.fromkeys(filters) if f != EVERYTHING or self._visible is not None]
        if not wanted:
            return None, [-1] * len(filters)
        if len(wanted) > self._capacity:
            block, slots = self._new_block(len(wanted)), {name: slot for slot, name in enumerate(wanted)}
            for name, slot in slots.items():
                self._fill(block, slot, name)
            return block, [slots.get(name, -1) for name in filters]
        if self._block is None:
            self._block = self._new_block(self._capacity)
        for name in wanted:
            if name in self._slots:
                self._slots.move_to_end(name)
        for name in wanted:
            if name not in self._slots:
                self._fill(self._block, self._free_slot(), name)
        return self._block, [self._slots.get(name, -1) if name in wanted else -1 for name in filters]

    def _free_slot(self) -> int:
        if len(self._slots) < self._capacity:
            return len(self._slots)
        return self._slots.popitem(last=False)[1]

    def _new_block(self, num_filters: int) -> torch.Tensor:
        return torch.empty(num_filters, self._num_items + 1, dtype=torch.int32, device=self._device)

    def _fill(self, block: torch.Tensor, slot: int, name: str) -> None:
        rows = np.ones(self._num_items, dtype=bool) if name == EVERYTHING else self._rows_of(name)
        if self._visible is not None:
            rows = rows & self._visible
        sums = np.zeros(self._num_items + 1, dtype=np.int32)
        np.cumsum(rows, out=sums[1:])
        block[slot] = torch.from_numpy(sums)
        if block is self._block:
            self._slots[name] = slot


class AllowedRows:
    """Allowed item rows of R requests that are decoded together.

    Args:
        num_items: N.
        excluded: per request the rows it must not reach, sorted, unique, or None.
            Each has shape (E_r,), int64 in [0, N).
        filter_sums: prefix sums of the filters used in this batch: entry [f, n] counts the rows
            before n that filter f allows. Shape: (F, N + 1), int32.
        filter_of: which filter every request uses, -1 for none. Shape: (R,).
        device: where the counts are asked for.

    Attributes:
        filter_sums, filter_of: as given; filter_of has shape (R, 1).
        excluded: the excluded rows that the filter would allow, then N as padding.
            Shape: (R, E), int64; None if there are none.
    """

    def __init__(
        self,
        num_items: int,
        excluded: Sequence[np.ndarray | None],
        *,
        filter_sums: torch.Tensor | None = None,
        filter_of: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_items = num_items
        self.filter_sums = filter_sums
        self.filter_of: torch.Tensor | None = None
        self._all_filtered = False
        if filter_sums is not None and filter_of is not None and max(filter_of) >= 0:
            self.filter_of = torch.as_tensor(filter_of, device=device)[:, None]
            self._all_filtered = min(filter_of) >= 0
        chosen = filter_of or [-1] * len(excluded)
        rows = [self._within_filter(one, at) for one, at in zip(excluded, chosen, strict=True)]
        longest = max((len(r) for r in rows), default=0)
        self.excluded: torch.Tensor | None = None
        if longest:
            padded = np.full((len(rows), longest), num_items, dtype=np.int64)  # sorts after every row
            for request, request_rows in enumerate(rows):
                padded[request, : len(request_rows)] = request_rows
            self.excluded = torch.from_numpy(padded).to(device)

    @classmethod
    def of_tensors(
        cls,
        num_items: int,
        *,
        filter_sums: torch.Tensor | None,
        filter_of: torch.Tensor | None,
        excluded: torch.Tensor | None,
    ) -> AllowedRows:
        """From the attributes, whose contents may change between two uses; see `RecordedDecodes`."""
        allowed = cls(num_items, [])
        allowed.filter_sums, allowed.filter_of, allowed.excluded = filter_sums, filter_of, excluded
        return allowed

    @property
    def is_everything(self) -> bool:
        """True if no request of the batch is restricted."""
        return self.excluded is None and self.filter_of is None

    def before(self, row: torch.Tensor) -> torch.Tensor:
        """How many rows before each given one are allowed.

        Args:
            row: Shape: (R, M), int64 in [0, N].

        Returns:
            Counts. Shape: (R, M), int64.
        """
        total = row
        if self.filter_sums is not None and self.filter_of is not None:
            total = self.filter_sums[self.filter_of.clamp(min=0), row].long()
            if not self._all_filtered:
                total = torch.where(self.filter_of >= 0, total, row)
        if self.excluded is not None:
            total = total - torch.searchsorted(self.excluded, row.contiguous())
        return total

    def count(self, first_row: torch.Tensor, end_row: torch.Tensor) -> torch.Tensor:
        """Allowed rows in [first_row, end_row). Shapes: (R, M), int64."""
        return self.before(end_row) - self.before(first_row)

    def _within_filter(self, rows: np.ndarray | None, filter_index: int) -> np.ndarray:
        """Those of the excluded rows that the request's filter would allow."""
        if rows is None:
            return np.empty(0, dtype=np.int64)
        rows = np.asarray(rows, dtype=np.int64)
        if self.filter_sums is None or filter_index < 0 or not len(rows):
            return rows
        sums = self.filter_sums[filter_index]
        at = torch.from_numpy(rows).to(sums.device)
        return rows[(sums[at + 1] > sums[at]).cpu().numpy()]
