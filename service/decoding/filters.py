"""Which item rows a request may reach, answered for any trie node in O(log E).

A node covers one contiguous range of item rows, so "how many allowed items are under this node?"
is a difference of two prefix counts: the filter's prefix sums minus the excluded rows before each
end of the range. Excluded rows are intersected with the filter first, so that nothing is
subtracted twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


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
        self._filter_sums = filter_sums
        self._filter_of = None if filter_of is None else torch.as_tensor(filter_of, device=device)[:, None]
        rows = [self._within_filter(request, rows) for request, rows in enumerate(excluded)]
        longest = max((len(r) for r in rows), default=0)
        self._excluded: torch.Tensor | None = None
        if longest:
            padded = np.full((len(rows), longest), num_items, dtype=np.int64)  # sorts after every row
            for request, request_rows in enumerate(rows):
                padded[request, : len(request_rows)] = request_rows
            self._excluded = torch.from_numpy(padded).to(device)

    @property
    def is_everything(self) -> bool:
        """True if no request of the batch is restricted."""
        return self._excluded is None and self._filter_of is None

    def count(self, first_row: torch.Tensor, end_row: torch.Tensor) -> torch.Tensor:
        """Allowed rows in [first_row, end_row).

        Args:
            first_row, end_row: Shape: (R, M), int64.

        Returns:
            Counts. Shape: (R, M), int64.
        """
        return self._before(end_row) - self._before(first_row)

    def _before(self, row: torch.Tensor) -> torch.Tensor:
        total = row
        if self._filter_sums is not None and self._filter_of is not None:
            filtered = self._filter_sums[self._filter_of.clamp(min=0), row].long()
            total = torch.where(self._filter_of >= 0, filtered, row)
        if self._excluded is not None:
            total = total - torch.searchsorted(self._excluded, row.contiguous())
        return total

    def _within_filter(self, request: int, rows: np.ndarray | None) -> np.ndarray:
        if rows is None:
            return np.empty(0, dtype=np.int64)
        rows = np.asarray(rows, dtype=np.int64)
        if self._filter_sums is None or self._filter_of is None or int(self._filter_of[request]) < 0:
            return rows
        sums = self._filter_sums[int(self._filter_of[request])]
        at = torch.from_numpy(rows).to(sums.device)
        return rows[(sums[at + 1] > sums[at]).cpu().numpy()]
