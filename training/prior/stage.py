"""Stage `prior`: fit by which score a bundle orders the items that the model proposes.

    python -m training prior --config training/recipes/industrial.toml

Decodes validation rows as the service would, fits the weights on the earlier half, keeps them only if
NDCG@10 on the later half gains, and then fits them again on all. Writes report.json and, if there is
a prior, its files to files/. Test rows are never read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.bundle import ItemPrior, Relation
from service.engine.torch_engine import TorchDecoder
from training.base_model.load import load_model, pick_device
from training.evaluation.baselines import spread
from training.evaluation.evaluate import RowDecoder
from training.evaluation.metrics import ranking_metrics
from training.evaluation.serving_order import ServingOrder
from training.evaluation.stage import PRIOR_FILES, read_prior, read_vocabulary
from training.items.dataset import Dataset
from training.prior.config import PriorConfig
from training.prior.features import item_features, relations
from training.prior.fit import Choice, fit_weights

if TYPE_CHECKING:
    from training.pipeline import StageContext


@dataclass(frozen=True)
class _Row:
    """Candidates of a validation row and their features; target -1: the beams missed it."""

    features: np.ndarray
    target: int


def run(context: StageContext) -> dict[str, Any]:
    """Fit, judge, save."""
    config = context.recipe.prior
    if not config.enabled:
        (context.dir / "report.json").write_text('{"kept": false}\n', encoding="utf-8")
        return {"prior": "not asked for"}
    dataset = Dataset.load(context.of("items"))
    codes = np.load(context.of("semantic_ids") / "codes.npy", allow_pickle=False)
    levels, prompt = read_vocabulary(context.of("grounding"))
    order = ServingOrder.build(dataset, codes, levels)
    model, _ = load_model(str(context.of("finetuning") / "model"))
    vectors = read_vectors(context.of("embeddings"))
    known = item_features(dataset, order, config.recent_share)
    of_history = relations(dataset, order, vectors, config.neighbours)
    rows = spread(dataset.valid, config.rows)
    decoder = RowDecoder(
        decoder=TorchDecoder(model.to(pick_device()).eval(), order.trie, levels),
        order=order,
        levels=levels,
        prompt=prompt,
        beam_width=config.beam_width,
    )
    made: list[_Row] = [_Row(np.empty((0, 0)), -1)] * rows.height
    histories, targets = rows["history"].to_list(), rows["target"].to_list()
    for row, beams in decoder.beams(rows, label="validation rows"):
        candidates, logprobs = order.candidates(beams)
        history = order.row_of_item[histories[row][-prompt.history_limit :]]
        features = _features(logprobs, candidates, history, known, of_history)
        hit = np.flatnonzero(candidates == order.row_of_item[targets[row]])
        made[row] = _Row(features, int(hit[0]) if len(hit) else -1)
    names = ["logprob", *known, *(relation.name for relation in of_history)]
    start = np.array([1.0] + [0.0] * (len(names) - 1))
    half = rows.height // 2
    trial = _fit(made[:half], start, config.ridge)
    before, after = _metrics(made[half:], start), _metrics(made[half:], trial)
    is_kept = after["NDCG@10"] > before["NDCG@10"] and trial[0] > 0
    # The test has spoken for a prior; which weights is a question to all rows.
    weights = _fit(made, start, config.ridge) if is_kept else start
    weights = weights / weights[0] if weights[0] > 0 else start  # only the order counts
    report = {
        "kept": bool(is_kept),
        "weights": {name: round(float(weight), 5) for name, weight in zip(names, weights, strict=True)},
        "rows": rows.height,
        "later half, model alone": before,
        "later half, with the prior": after,
    }
    (context.dir / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if is_kept:
        prior = make_prior(report["weights"], known, of_history, prompt.history_limit)
        prior.save(context.dir / PRIOR_FILES)
    return {
        "valid rows": rows.height,
        "kept": bool(is_kept),
        "NDCG@10 later half, model alone": round(before["NDCG@10"], 4),
        "NDCG@10 later half, with the prior": round(after["NDCG@10"], 4),
        "HR@10 later half, model alone": round(before["HR@10"], 4),
        "HR@10 later half, with the prior": round(after["HR@10"], 4),
        **{f"weight of {name}": value for name, value in report["weights"].items()},
    }


def _features(
    logprobs: np.ndarray,
    candidates: np.ndarray,
    history: np.ndarray,
    known: dict[str, np.ndarray],
    of_history: tuple[Relation, ...],
) -> np.ndarray:
    columns = [logprobs, *(values[candidates] for values in known.values())]
    columns += [np.log(one.floor + one.strengths(candidates, history)) for one in of_history]
    return np.stack(columns, axis=1).astype(np.float64)


def _fit(rows: list[_Row], start: np.ndarray, ridge: float) -> np.ndarray:
    choices = [Choice(row.features, row.target) for row in rows if row.target >= 0]
    return fit_weights(choices, start=start, ridge=ridge)


def _metrics(rows: list[_Row], weights: np.ndarray) -> dict[str, float]:
    ranks = np.zeros(len(rows), dtype=np.int64)
    for number, row in enumerate(rows):
        if row.target >= 0:
            order = np.argsort(-(row.features @ weights), kind="stable")
            ranks[number] = int(np.flatnonzero(order == row.target)[0]) + 1
    return {name: round(value, 6) for name, value in ranking_metrics(ranks, (1, 5, 10)).items()}


def make_prior(
    weights: Mapping[str, float],
    known: Mapping[str, np.ndarray],
    of_history: Sequence[Relation],
    history_limit: int,
) -> ItemPrior:
    """The prior with these weights.

    Args:
        weights: by the names of `known` and of the relations.
        known: what does not depend on the history. Shape of each: (N,).
        of_history: the relations, whatever their weights.
        history_limit: items of history read.
    """
    bias = sum(weights[name] * values for name, values in known.items())
    weighted = tuple(replace(one, weight=weights[one.name]) for one in of_history)
    return ItemPrior(history_limit, np.asarray(bias, dtype=np.float32), weighted)


def refreshed_prior(
    directory: Path, dataset: Dataset, order: ServingOrder, vectors: np.ndarray, config: PriorConfig
) -> ItemPrior | None:
    """The prior that the stage kept, with its weights but counts of other training rows; None if none.

    Args:
        directory: the stage's folder.
        dataset: whose training rows are counted.
        order: of the bundle that it is for.
        vectors: see `read_vectors`.
        config: the recipe's section.
    """
    report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    if not report["kept"]:
        return None
    before = read_prior(directory, dataset.num_items)
    assert before is not None, "a kept prior has files"
    known = item_features(dataset, order, config.recent_share)
    of_history = relations(dataset, order, vectors, config.neighbours)
    return make_prior(report["weights"], known, of_history, before.history_limit)


def read_vectors(embeddings: Path) -> np.ndarray:
    """The items' vectors from the folder of the stage `embeddings`. Shape: (N, D), float32."""
    return np.load(embeddings / "text_embeddings.npy", allow_pickle=False)
