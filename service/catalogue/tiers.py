"""How popular an item was in training: one of three tiers, for metrics about what is recommended.

`head`: the most popular items that hold half of all occurrences in the training sequences; an answer
stream with more than half of its items from there is more drawn to what is popular than the users were.
`cold`: never seen in training, as are most items that came after it. `tail`: the rest.
"""

from __future__ import annotations

import numpy as np

TIERS = ("head", "tail", "cold")
HEAD_SHARE = 0.5


def tiers_of(popularity: np.ndarray) -> np.ndarray:
    """Tier of every item, as a place in `TIERS`.

    Args:
        popularity: occurrences in training. Shape: (N,), >= 0.

    Returns:
        Shape: (N,), uint8.
    """
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]  # held by more popular items
    tiers = np.ones(len(popularity), dtype=np.uint8)
    tiers[order[before < HEAD_SHARE * popularity.sum()]] = 0
    tiers[popularity == 0] = 2
    return tiers
