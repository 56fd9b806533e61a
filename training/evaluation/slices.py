"""Parts of the test rows in which a model may do much better or worse than on the whole.

By the target, and by the training rows alone: `cold` targets occur in no training target or history;
`head` targets are among the most popular fifth of the items, `tail` targets are the others that were
seen. The three share no row and make up all of them.
"""

from __future__ import annotations

import numpy as np

from training.evaluation.baselines import by_popularity
from training.items.dataset import Dataset

_HEAD_SHARE = 0.2


def slices_of(dataset: Dataset, targets_R: np.ndarray) -> dict[str, np.ndarray]:
    """Which rows belong to which slice.

    Args:
        dataset: its popularity counts the training sequences.
        targets_R: item indices. Shape: (R,).

    Returns:
        Row masks of shape (R,), bool, by name; slices without rows are left out.
    """
    is_head = np.zeros(dataset.num_items, dtype=bool)
    is_head[by_popularity(dataset.popularity)[: round(_HEAD_SHARE * dataset.num_items)]] = True
    is_cold = dataset.popularity == 0
    kinds = {"head": is_head & ~is_cold, "tail": ~is_head & ~is_cold, "cold": is_cold}
    found = {name: mask[targets_R] for name, mask in kinds.items()}
    return {name: mask for name, mask in found.items() if mask.any()}
