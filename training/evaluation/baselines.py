"""The floor every model must stand on: popularity and item-to-item co-occurrence (ItemCF).

Both learn from the training rows alone and rank all N items for a history; items of the history
may be recommended again.

ItemCF: two items that follow each other within `window` steps in a training sequence are related,
1/distance strong; the way back counts `backward` as much. A candidate's score is the sum over
the newest `history_limit` items of the history of recency^age * strength, divided by
(count + 1)^damping. Ties, and what nothing is related to, go by popularity.

With `self_pairs` an item may be related to itself, so that what people buy again is recommended
again. On MiniOneRec's Industrial test rows that, undamped and forward only, lifts HR@10 from .11 to
.14: a floor without it flatters every model beside it.

Shapes: R histories, N items, M places of a list, P related pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl

from training.evaluation.metrics import ranking_metrics, ranks_of
from training.items.dataset import Dataset

_SCORES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class ItemCFSettings:
    """See the module docstring."""

    window: int = 3
    history_limit: int = 10
    backward: float = 0.5
    recency: float = 0.8
    damping: float = 0.5
    self_pairs: bool = False


def count_targets(dataset: Dataset) -> np.ndarray:
    """How often every item was the next one in the training rows. Shape: (N,), int64."""
    targets = dataset.train["target"].to_numpy()
    return np.bincount(targets, minlength=dataset.num_items).astype(np.int64)


def by_popularity(counts_N: np.ndarray) -> np.ndarray:
    """Item indices by count, descending; ties go to the lower index. Shape: (N,), int64."""
    return np.argsort(-counts_N, kind="stable").astype(np.int64)


def popularity_lists(counts_N: np.ndarray, num_rows: int, num_places: int) -> np.ndarray:
    """The same most popular items for everybody. Shape: (R, min(M, N)), int64."""
    return np.tile(by_popularity(counts_N)[:num_places], (num_rows, 1))


class ItemCF:
    """Item-to-item co-occurrence, fitted on training sequences.

    Args:
        dataset: its training sequences and popularity are read.
        settings: see the module docstring.
    """

    def __init__(self, dataset: Dataset, settings: ItemCFSettings | None = None) -> None:
        self.settings = settings or ItemCFSettings()
        self._num_items = dataset.num_items
        first, second, strength = related_pairs(dataset.train_sequences, dataset.num_items, self.settings)
        self._start = np.searchsorted(first, np.arange(dataset.num_items + 1))
        self._related = second
        self._strength = strength / (dataset.popularity[second] + 1.0) ** self.settings.damping
        # Small enough to order ties only: strengths differ by far more.
        place = np.empty(dataset.num_items)
        place[by_popularity(dataset.popularity)] = np.arange(dataset.num_items)
        self._tie_break = -1e-9 * place / dataset.num_items

    def recommend(self, histories: pl.Series, num_places: int) -> np.ndarray:
        """Rank all items for every history.

        Args:
            histories: lists of item indices, oldest first. R entries.
            num_places: M.

        Returns:
            Item indices, best first. Shape: (R, min(M, N)), int64.
        """
        num_places = min(num_places, self._num_items)
        parts = [self._best(scores, num_places) for scores in self._scores(histories)]
        return np.concatenate(parts) if parts else np.empty((0, num_places), dtype=np.int64)

    def _scores(self, histories: pl.Series) -> Iterator[np.ndarray]:
        """Scores of a chunk of histories after the other. Shape: (rows of the chunk, N), float64."""
        rows_at_once = max(1, _SCORES_AT_ONCE // self._num_items)
        for start in range(0, len(histories), rows_at_once):
            newest = histories[start : start + rows_at_once].list.tail(self.settings.history_limit)
            lengths = newest.list.len().to_numpy().astype(np.int64)
            items = newest.explode(empty_as_null=False).to_numpy()
            row = np.repeat(np.arange(len(lengths)), lengths)
            age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(items))
            num_related = self._start[items + 1] - self._start[items]
            offset = np.arange(num_related.sum()) - np.repeat(
                np.cumsum(num_related) - num_related, num_related
            )
            pair = np.repeat(self._start[items], num_related) + offset
            weight = np.repeat(self.settings.recency**age, num_related) * self._strength[pair]
            cell = np.repeat(row, num_related) * self._num_items + self._related[pair]
            scores = np.bincount(cell, weights=weight, minlength=len(lengths) * self._num_items)
            yield scores.reshape(len(lengths), self._num_items) + self._tie_break

    @staticmethod
    def _best(scores: np.ndarray, num_places: int) -> np.ndarray:
        chosen = np.argpartition(-scores, num_places - 1, axis=1)[:, :num_places]
        order = np.argsort(-np.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
        return np.take_along_axis(chosen, order, axis=1).astype(np.int64)


def related_pairs(
    sequences: pl.DataFrame, num_items: int, settings: ItemCFSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Related items and how strongly.

    Returns:
        first, second, strength: sorted by first, then second. Shapes: (P,), (P,), (P,).
    """
    items = sequences["items"].explode(empty_as_null=False).to_numpy().astype(np.int64)
    owner = np.repeat(np.arange(sequences.height), sequences["items"].list.len().to_numpy())
    keys, weights = [], []
    for distance in range(1, settings.window + 1):
        before, after = items[:-distance], items[distance:]
        counts = owner[:-distance] == owner[distance:]
        if not settings.self_pairs:
            counts &= before != after
        before, after = before[counts], after[counts]
        keys += [before * num_items + after, after * num_items + before]
        weights += [np.full(len(before), 1 / distance), np.full(len(before), settings.backward / distance)]
    unique, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    strength = np.bincount(inverse, weights=np.concatenate(weights), minlength=len(unique))
    kept = strength > 0
    return unique[kept] // num_items, unique[kept] % num_items, strength[kept]


def tune_itemcf(dataset: Dataset, *, max_rows: int) -> ItemCFSettings:
    """Settings with the best NDCG@10 on validation rows; the first of equals.

    Args:
        dataset: fitted on its training part, chosen by its validation part.
        max_rows: validation rows read, at most, evenly spread.
    """
    rows = spread(dataset.valid, max_rows)
    targets = rows["target"].to_numpy()
    best, best_score = ItemCFSettings(), -1.0
    grid = itertools.product((False, True), (0.0, 0.5), (0.0, 0.3, 0.5), (0.5, 0.8))
    for self_pairs, backward, damping, recency in grid:
        settings = ItemCFSettings(self_pairs=self_pairs, backward=backward, damping=damping, recency=recency)
        lists = ItemCF(dataset, settings).recommend(rows["history"], 10)
        score = ranking_metrics(ranks_of(lists, targets), (10,))["NDCG@10"]
        if score > best_score:
            best, best_score = settings, score
    return best


def spread(rows: pl.DataFrame, max_rows: int | None) -> pl.DataFrame:
    """At most `max_rows` rows, evenly spread over all of them; always the same ones."""
    if max_rows is None or rows.height <= max_rows:
        return rows
    return rows[np.arange(max_rows) * rows.height // max_rows]


def describe(settings: ItemCFSettings) -> dict[str, float | int | bool]:
    """The settings as JSON knows them."""
    return asdict(settings)
