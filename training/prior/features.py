"""What the prior knows about items: popularity, trend, and which items follow which.

Everything comes from the training rows alone. Items are in the order of the bundle's rows.

Shapes: N items.
"""

from __future__ import annotations

import numpy as np

from service.bundle import Relation
from training.evaluation.baselines import ItemCFSettings, count_targets, related_pairs
from training.evaluation.serving_order import ServingOrder
from training.items.dataset import Dataset

FLOOR = 0.1

# Forward and undamped, items may follow themselves: what is bought next, or again. Both ways and
# damped: what is bought together. The two err differently, and the weights say how far to trust which.
_RELATIONS = {
    "next": ItemCFSettings(backward=0.0, damping=0.0, recency=0.5, self_pairs=True),
    "near": ItemCFSettings(backward=0.5, damping=0.5, recency=0.8),
}


def relations(dataset: Dataset, order: ServingOrder) -> tuple[Relation, ...]:
    """The relations with weight 0."""
    return tuple(_relation(name, settings, dataset, order) for name, settings in _RELATIONS.items())


def _relation(name: str, settings: ItemCFSettings, dataset: Dataset, order: ServingOrder) -> Relation:
    first, second, strength = related_pairs(dataset.train_sequences, dataset.num_items, settings)
    strength = strength / (dataset.popularity[second] + 1.0) ** settings.damping
    from_row, to_row = order.row_of_item[first], order.row_of_item[second]
    place = np.lexsort((to_row, from_row))
    starts = np.searchsorted(from_row[place], np.arange(dataset.num_items + 1))
    related, strengths = to_row[place].astype(np.int32), strength[place].astype(np.float32)
    return Relation(name, 0.0, FLOOR, settings.recency, starts, related, strengths)


def item_features(dataset: Dataset, order: ServingOrder, recent_share: float) -> dict[str, np.ndarray]:
    """What does not depend on the history: log counts, over all training rows and over the newest.

    Train rows are in order of time where the split is by time; where it is not, the newest rows are
    those of the users that come last, and the fit finds no use for the difference.

    Returns:
        "popularity" and "recent". Shapes: (N,), float64.
    """
    targets = dataset.train["target"].to_numpy()
    newest = targets[-max(1, round(recent_share * len(targets))) :]
    recent = np.bincount(newest, minlength=dataset.num_items)
    return {
        "popularity": np.log(count_targets(dataset) + 1.0)[order.item_of_row],
        "recent": np.log(recent + 1.0)[order.item_of_row],
    }
