"""Items in the order in which a bundle holds them: by SID, then popularity, then item_id.

Beams name item rows of that order. Offline figures come from the same order, so that items that
share a SID are ranked by the very tie-break that serves.

Shapes: N items, L levels, R rows, W beam width, B beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from service.bundle.manifest import Level
from service.decoding.beam_search import Beams
from service.decoding.trie import Trie
from training.evaluation.errors import EvaluationError
from training.items.dataset import Dataset


@dataclass(frozen=True)
class ServingOrder:
    """Where every item stands in the bundle's order, and the trie over it.

    Attributes:
        item_of_row: item index of every item row. Shape: (N,), int64.
        row_of_item: its inverse. Shape: (N,), int64.
        codes_of_row: SIDs in row order, sorted. Shape: (N, L).
        trie: the trie that serves.
    """

    item_of_row: np.ndarray
    row_of_item: np.ndarray
    codes_of_row: np.ndarray
    trie: Trie

    @classmethod
    def build(cls, dataset: Dataset, codes_NL: np.ndarray, levels: Sequence[Level]) -> ServingOrder:
        """Sort the items and build the trie.

        Args:
            dataset: items and their popularity.
            codes_NL: SIDs in item-index order. Shape: (N, L).
            levels: codebook sizes.

        Raises:
            EvaluationError: codes and items do not fit.
        """
        codes = np.asarray(codes_NL)
        if codes.shape != (dataset.num_items, len(levels)):
            raise EvaluationError(
                f"the SIDs have shape {codes.shape}, {dataset.num_items} items and {len(levels)} levels need "
                f"{(dataset.num_items, len(levels))}; run the stage semantic_ids again"
            )
        order = serving_order(codes, dataset.popularity, dataset.items["item_id"])
        rows = np.empty_like(order)
        rows[order] = np.arange(len(order))
        trie = Trie.build(codes[order], tuple(level.codebook_size for level in levels))
        return cls(order, rows, codes[order], trie)

    def candidates(self, beams: Beams) -> tuple[np.ndarray, np.ndarray]:
        """Item rows that beams stand for, best first, and the logprob of their SIDs.

        Returns:
            Shapes: (C,) int64, (C,) float64.

        Raises:
            EvaluationError: a beam is no valid item.
        """
        self.check(beams)
        sizes = beams.end_row - beams.first_row
        offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        logprobs = np.repeat(np.asarray(beams.logprobs, dtype=np.float64), sizes)
        return np.repeat(beams.first_row, sizes).astype(np.int64) + offsets, logprobs

    def sid_rank(self, rows: np.ndarray, item: int) -> int:
        """Place of the item's SID among those of ranked item rows, from 1; 0 if none carries it.

        Args:
            rows: item rows, best first, each once. Shape: (C,).
            item: item index.
        """
        codes = self.codes_of_row[rows]
        hit = np.flatnonzero((codes == self.codes_of_row[self.row_of_item[item]]).all(axis=1))
        return len(np.unique(codes[: hit[0] + 1], axis=0)) if len(hit) else 0

    def check(self, beams: Beams) -> None:
        """Refuse beams that are not exactly SIDs of this catalogue, each once.

        Raises:
            EvaluationError: says which beam is wrong.
        """
        first, end = beams.first_row, beams.end_row
        if beams.trie_version != self.trie.version:
            raise EvaluationError(f"the beams come from trie {beams.trie_version}, not {self.trie.version}")
        in_range = (first >= 0) & (first < end) & (end <= len(self.item_of_row))
        is_item = in_range.copy()
        is_item[in_range] = (self.codes_of_row[first[in_range]] == beams.codes[in_range]).all(axis=1) & (
            self.codes_of_row[end[in_range] - 1] == beams.codes[in_range]
        ).all(axis=1)
        if not is_item.all():
            wrong = int(np.flatnonzero(~is_item)[0])
            raise EvaluationError(
                f"beam {wrong + 1} spells {beams.codes[wrong].tolist()}, which is no item; "
                "the decoder is broken"
            )
        if len(np.unique(first)) != len(first):
            raise EvaluationError("a SID was returned twice; the decoder is broken")


def serving_order(codes_NL: np.ndarray, popularity_N: np.ndarray, item_ids: pl.Series) -> np.ndarray:
    """Item indices sorted by SID, then popularity (descending), then item_id. Shape: (N,), int64."""
    keys = {f"code_{level}": np.ascontiguousarray(codes_NL[:, level]) for level in range(codes_NL.shape[1])}
    frame = pl.DataFrame({**keys, "popularity": popularity_N, "item_id": item_ids}).with_row_index("item")
    descending = [False] * len(keys) + [True, False]
    ordered = frame.sort([*keys, "popularity", "item_id"], descending=descending)
    return ordered["item"].to_numpy().astype(np.int64)
