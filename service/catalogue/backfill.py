"""What to show when the beams reach fewer than k items: relatives by SID prefix, then popular items."""

from __future__ import annotations

import numpy as np

from service.catalogue.selection import Selection
from service.catalogue.snapshot import Snapshot

FIRST_LOOK = 256  # popular rows examined before looking further


class Backfill:
    """Chooses item rows without the model.

    Rows are sorted by SID, so the items under a prefix are one range of rows.

    Args:
        snapshot: the catalogue to choose from.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def siblings(self, codes: np.ndarray, num_wanted: int, selection: Selection) -> np.ndarray:
        """Items that share a prefix with a beam: longest prefix first, then best beam, then popularity.

        Args:
            codes: the beams, best first. Shape: (B, L).
            num_wanted: most rows to return.
            selection: rows that may be returned.

        Returns:
            Distinct item rows. Shape: (<= num_wanted,), int64.
        """
        chosen = np.empty(0, dtype=np.int64)
        for depth in range(codes.shape[1] - 1, 0, -1):
            prefixes = dict.fromkeys(tuple(int(c) for c in beam[:depth]) for beam in codes)
            for prefix in prefixes:
                if len(chosen) >= num_wanted:
                    return chosen
                rows = selection.keep(np.arange(*self._snapshot.rows_under(prefix)))
                rows = rows[~np.isin(rows, chosen)]
                rows = rows[np.argsort(self._snapshot.popularity_rank[rows], kind="stable")]
                chosen = np.concatenate([chosen, rows[: num_wanted - len(chosen)]])
        return chosen

    def popular(self, num_wanted: int, selection: Selection) -> np.ndarray:
        """The most popular items.

        Args:
            num_wanted: most rows to return.
            selection: rows that may be returned.

        Returns:
            Distinct item rows, most popular first. Shape: (<= num_wanted,), int64.
        """
        start, size = 0, max(FIRST_LOOK, num_wanted + len(selection.excluded))
        popular, found = self._snapshot.popular_rows, np.empty(0, dtype=np.int64)
        while len(found) < num_wanted and start < len(popular):
            found = np.concatenate([found, selection.keep(popular[start : start + size])])
            start, size = start + size, 2 * size  # a narrow filter needs a long look
        return found[:num_wanted]
