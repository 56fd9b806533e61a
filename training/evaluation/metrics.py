"""Ranking metrics with one target per row, from the target's rank.

Shapes: R rows, M places of a recommendation list, N items. A rank counts from 1; 0 means the target
is not in the list. With one target, HR@K is Recall@K, and NDCG@K is 1 / log2(rank + 1) if the
rank is at most K, else 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.evaluation.config import CUTOFFS

NO_ITEM = -1


def ranks_of(lists_RM: np.ndarray, targets_R: np.ndarray) -> np.ndarray:
    """Rank of every target in its list.

    Args:
        lists_RM: recommended item indices, best first, `NO_ITEM` where a list ends. Shape: (R, M).
        targets_R: the item that came next. Shape: (R,).

    Returns:
        Ranks from 1, or 0. Shape: (R,), int64.
    """
    is_target = lists_RM == np.asarray(targets_R)[:, None]
    return np.where(is_target.any(axis=1), is_target.argmax(axis=1) + 1, 0).astype(np.int64)


def gains(ranks_R: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, np.ndarray]:
    """What every row adds to every metric: `HR@K`, `NDCG@K` and `MRR`. Values of shape (R,), float64."""
    ranks = np.asarray(ranks_R)
    found = ranks > 0
    safe = np.where(found, ranks, 1)
    discounts = np.where(found, 1 / np.log2(safe + 1), 0.0)
    result: dict[str, np.ndarray] = {}
    for cutoff in cutoffs:
        result[f"HR@{cutoff}"] = (found & (ranks <= cutoff)).astype(np.float64)
    for cutoff in cutoffs:
        result[f"NDCG@{cutoff}"] = np.where(ranks <= cutoff, discounts, 0.0)
    result["MRR"] = np.where(found, 1 / safe, 0.0)
    return result


def ranking_metrics(ranks_R: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Mean of every metric over the rows. MRR reads the whole list.

    Raises:
        ValueError: there are no rows.
    """
    if not len(ranks_R):
        raise ValueError("no rows to measure")
    return {name: float(values.mean()) for name, values in gains(ranks_R, cutoffs).items()}


def coverage(lists_RM: np.ndarray, num_items: int, cutoff: int) -> float:
    """Share of the N items that somebody is shown among the first `cutoff`, in [0, 1]."""
    shown = np.unique(lists_RM[:, :cutoff])
    return float((shown != NO_ITEM).sum() / num_items)


def popularity_share(lists_RM: np.ndarray, popularity_N: np.ndarray, cutoff: int) -> float:
    """Share of the first `cutoff` places that the most popular 1 % of items fill, in [0, 1].

    Args:
        lists_RM: recommended item indices. Shape: (R, M).
        popularity_N: count per item; ties go to the lower index. Shape: (N,).
        cutoff: places read per list.
    """
    num_popular = max(1, len(popularity_N) // 100)
    popular = np.argsort(-popularity_N, kind="stable")[:num_popular]
    shown = lists_RM[:, :cutoff]
    places = (shown != NO_ITEM).sum()
    return float(np.isin(shown, popular).sum() / places) if places else 0.0
