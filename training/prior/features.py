"""What the prior knows about items: popularity, trend, which items follow which, and which are alike.

Everything comes from the training rows and the items' vectors alone. Items are in the order of the
bundle's rows.

Shapes: N items, D dimensions.
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


# Of items that are alike: log(floor + cosine squared). Low floors make distant neighbours all alike.
_ALIKE_FLOOR, _ALIKE_RECENCY = 0.5, 0.7
_ROWS_AT_ONCE = 2048


def relations(
    dataset: Dataset, order: ServingOrder, vectors: np.ndarray, num_neighbours: int
) -> tuple[Relation, ...]:
    """The relations with weight 0.

    Args:
        dataset: its training sequences say what follows what.
        order: of the bundle.
        vectors: what the semantic IDs were made from, in item-index order. Shape: (N, D).
        num_neighbours: nearest items by vector that count as alike; 0 leaves this relation out.
    """
    found = [_relation(name, settings, dataset, order) for name, settings in _RELATIONS.items()]
    if num_neighbours:
        found.append(_alike(vectors[order.item_of_row], num_neighbours))
    return tuple(found)


def _alike(vectors: np.ndarray, num_neighbours: int) -> Relation:
    """Which items are alike: the nearest by cosine, squared; nobody is its own neighbour."""
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    num_items = len(units)
    num_neighbours = min(num_neighbours, num_items - 1)
    related, strength = [], []
    for start in range(0, num_items, _ROWS_AT_ONCE):
        cosines = units[start : start + _ROWS_AT_ONCE] @ units.T
        here = np.arange(len(cosines))
        cosines[here, start + here] = -1
        nearest = np.sort(np.argpartition(-cosines, num_neighbours - 1, axis=1)[:, :num_neighbours], axis=1)
        related.append(nearest)
        strength.append(np.maximum(np.take_along_axis(cosines, nearest, axis=1), 0) ** 2)
    strengths = np.concatenate(strength)
    is_alike = strengths > 0
    starts = np.concatenate([[0], np.cumsum(is_alike.sum(axis=1))])
    nearest_rows = np.concatenate(related)[is_alike].astype(np.int32)
    return Relation(
        "alike",
        0.0,
        _ALIKE_FLOOR,
        _ALIKE_RECENCY,
        starts.astype(np.int64),
        nearest_rows,
        strengths[is_alike].astype(np.float32),
    )


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
