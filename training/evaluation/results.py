"""Put results together: figures, intervals and baselines of one set of rows; write them down."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from training.evaluation.baselines import (
    ItemCF,
    ItemCFSettings,
    count_targets,
    describe,
    popularity_lists,
    tune_itemcf,
)
from training.evaluation.config import EvaluationConfig
from training.evaluation.evaluate import Ranking
from training.evaluation.intervals import bootstrap_intervals, paired_intervals
from training.evaluation.metrics import coverage, popularity_share, ranking_metrics, ranks_of
from training.evaluation.report import markdown
from training.evaluation.sasrec import retrain_sasrec, train_sasrec
from training.evaluation.serving_order import ServingOrder
from training.evaluation.slices import slices_of
from training.items.dataset import Dataset

_DIGITS = 6


@dataclass(frozen=True)
class Baselines:
    """What the baselines did on the same rows.

    Attributes:
        ranks: ranks of the targets by name. Shape of each: (R,).
        about: chosen settings and other seeds' figures, for results.json.
    """

    ranks: dict[str, np.ndarray]
    about: dict[str, Any]


def run_baselines(
    dataset: Dataset, rows: pl.DataFrame, config: EvaluationConfig, *, directory: Path
) -> Baselines:
    """Train and run every baseline the recipe asks for.

    Args:
        dataset: what they learn from and are chosen by; its test rows are not looked at.
        rows: what they are measured on.
        config: which ones.
        directory: for the checkpoints of those that take long.
    """
    targets, places = rows["target"].to_numpy(), config.beam_width
    popular = popularity_lists(count_targets(dataset), rows.height, places)
    ranks = {
        "popularity": ranks_of(popular, targets),
        "itemcf": ranks_of(ItemCF(dataset).recommend(rows["history"], places), targets),
    }
    about: dict[str, Any] = {"itemcf_tuned_settings": None}
    if config.tune_itemcf:
        settings = tune_itemcf(dataset, max_rows=config.tuning_rows)
        lists = ItemCF(dataset, settings).recommend(rows["history"], places)
        ranks["itemcf_tuned"] = ranks_of(lists, targets)
        about["itemcf_tuned_settings"] = describe(settings)
    if config.sasrec.seeds:
        ranks["sasrec"], about["sasrec"] = _run_sasrec(dataset, rows, config, directory)
    return Baselines(ranks, about)


def _run_sasrec(
    dataset: Dataset, rows: pl.DataFrame, config: EvaluationConfig, directory: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """Ranks by the first seed, and the settings and figures of every seed."""
    per_seed, first = [], None
    for seed in config.sasrec.seeds:
        folder = directory / f"sasrec_{seed}"
        baseline, notes = train_sasrec(dataset, config.sasrec, seed=seed, directory=folder)
        ranks = ranks_of(baseline.recommend(rows["history"], config.beam_width), rows["target"].to_numpy())
        first = ranks if first is None else first
        best = next(note for note in notes["evaluations"] if note["step"] == notes["best_step"])
        chosen = {"seed": seed, "epochs": best["epoch"], "valid_NDCG@10": best["NDCG@10"]}
        per_seed.append(chosen | {"metrics": _rounded(ranking_metrics(ranks))})
    assert first is not None
    return first, {"settings": config.sasrec.model_dump(mode="json"), "seeds": per_seed}


def refit_baselines(
    dataset: Dataset, rows: pl.DataFrame, about: dict[str, Any], config: EvaluationConfig, *, directory: Path
) -> dict[str, np.ndarray]:
    """The chosen baselines once more, with other training rows and nothing chosen again.

    Args:
        dataset: what they learn from now.
        rows: what they are measured on.
        about: what `run_baselines` chose.
        config: which ones.
        directory: for checkpoints.

    Returns:
        Ranks of the targets by the same names. Shape of each: (R,).
    """
    targets, ranks = rows["target"].to_numpy(), {}
    if about["itemcf_tuned_settings"]:
        itemcf = ItemCF(dataset, ItemCFSettings(**about["itemcf_tuned_settings"]))
        ranks["itemcf_tuned"] = ranks_of(itemcf.recommend(rows["history"], config.beam_width), targets)
    if config.sasrec.seeds:
        first = about["sasrec"]["seeds"][0]
        sasrec = retrain_sasrec(
            dataset,
            config.sasrec,
            epochs=first["epochs"],
            seed=first["seed"],
            directory=directory / "sasrec_refit",
        )
        ranks["sasrec"] = ranks_of(sasrec.recommend(rows["history"], config.beam_width), targets)
    return ranks


def alone_results(ranking: Ranking, resampling: dict[str, int]) -> dict[str, Any] | None:
    """The same rows ordered by the model's logprob alone; None where nothing else orders them."""
    if ranking.ranks_alone is None:
        return None
    gained = paired_intervals(ranking.ranks, ranking.ranks_alone, **resampling)
    return {
        "metrics": _rounded(ranking_metrics(ranking.ranks_alone)),
        "intervals": _rounded(bootstrap_intervals(ranking.ranks_alone, **resampling)),
        "gain_of_the_prior": _rounded(gained),
    }


def refit_results(
    refit: Ranking, ranking: Ranking, others: dict[str, np.ndarray], *, config: EvaluationConfig, seed: int
) -> dict[str, Any]:
    """The refitted model, beside baselines that were refitted too and the model of the training rows.

    Args:
        refit: its ranking.
        ranking: that of the model that learned from the training rows alone, same rows.
        others: ranks of the refitted baselines.
        config: of the evaluation.
        seed: of the resampling.
    """
    resampling = {"num_resamples": config.num_resamples, "seed": seed}
    return {
        "metrics": _rounded(ranking_metrics(refit.ranks)),
        "intervals": _rounded(bootstrap_intervals(refit.ranks, **resampling)),
        "sid_level": _rounded(ranking_metrics(refit.sid_ranks)),
        "model_alone": alone_results(refit, resampling),
        "gain_of_the_refit": _rounded(paired_intervals(refit.ranks, ranking.ranks, **resampling)),
        "baselines": {name: _rounded(ranking_metrics(ranks)) for name, ranks in others.items()},
        "differences": {
            name: _rounded(paired_intervals(refit.ranks, ranks, **resampling))
            for name, ranks in others.items()
        },
    }


def slice_results(
    dataset: Dataset,
    rows: pl.DataFrame,
    ranks: np.ndarray,
    others: dict[str, np.ndarray],
    resampling: dict[str, int],
) -> dict[str, Any]:
    """The figures of every slice by itself: the model's with intervals, and the baselines'."""
    found = {}
    for name, mask in slices_of(dataset, rows["target"].to_numpy()).items():
        found[name] = {
            "rows": int(mask.sum()),
            "metrics": _rounded(ranking_metrics(ranks[mask])),
            "intervals": _rounded(bootstrap_intervals(ranks[mask], **resampling)),
            "baselines": {other: _rounded(ranking_metrics(theirs[mask])) for other, theirs in others.items()},
            "differences": {
                other: _rounded(paired_intervals(ranks[mask], theirs[mask], **resampling))
                for other, theirs in others.items()
            },
        }
    return found


def compose(
    dataset: Dataset,
    rows: pl.DataFrame,
    order: ServingOrder,
    ranking: Ranking,
    others: dict[str, np.ndarray],
    *,
    config: EvaluationConfig,
    seed: int,
) -> dict[str, Any]:
    """The measured part of results.json."""
    resampling = {"num_resamples": config.num_resamples, "seed": seed}
    leaves = np.unique(order.codes_of_row, axis=0, return_inverse=True, return_counts=True)
    shared = leaves[2][leaves[1].ravel()] > 1
    targets = order.row_of_item[rows["target"].to_numpy()]
    return {
        "dataset": dataset.name,
        "num_items": dataset.num_items,
        "test_rows": rows.height,
        "all_test_rows": dataset.test.height,
        "beam_width": config.beam_width,
        "metrics": _rounded(ranking_metrics(ranking.ranks)),
        "intervals": _rounded(bootstrap_intervals(ranking.ranks, **resampling)),
        "sid_level": _rounded(ranking_metrics(ranking.sid_ranks)),
        "model_alone": alone_results(ranking, resampling),
        "baselines": {name: _rounded(ranking_metrics(ranks)) for name, ranks in others.items()},
        "differences": {
            name: _rounded(paired_intervals(ranking.ranks, ranks, **resampling))
            for name, ranks in others.items()
        },
        "slices": slice_results(dataset, rows, ranking.ranks, others, resampling),
        "catalogue": {
            "coverage@10": round(coverage(ranking.lists, dataset.num_items, 10), _DIGITS),
            "popularity_share@10": round(popularity_share(ranking.lists, dataset.popularity, 10), _DIGITS),
            "targets_with_shared_sid": round(float(shared[targets].mean()), _DIGITS),
        },
        "published": [row.model_dump() for row in config.published],
    }


def save(
    directory: Path,
    results: dict[str, Any],
    rows: pl.DataFrame,
    ranking: Ranking,
    others: dict[str, np.ndarray],
    refit: Ranking | None = None,
) -> None:
    """Write results.json, report.md and rows.parquet."""
    (directory / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (directory / "report.md").write_text(markdown(results), encoding="utf-8")
    details = rows.select("user_id", "target").with_columns(
        rank=pl.Series(ranking.ranks, dtype=pl.Int32),
        sid_rank=pl.Series(ranking.sid_ranks, dtype=pl.Int32),
        recommended=pl.Series(ranking.lists[:, :10].astype(np.int32).tolist(), dtype=pl.List(pl.Int32)),
        **{f"{name}_rank": pl.Series(ranks, dtype=pl.Int32) for name, ranks in others.items()},
        **({"refit_rank": pl.Series(refit.ranks, dtype=pl.Int32)} if refit else {}),
    )
    details.write_parquet(directory / "rows.parquet", compression="zstd")


def headline(results: dict[str, Any]) -> dict[str, Any]:
    """Figures worth a table row, with their floor."""
    low, high = results["intervals"]["NDCG@10"]
    figures: dict[str, Any] = {"test rows": results["test_rows"]}
    for name in ("HR@1", "HR@10", "NDCG@10"):
        figures[name] = round(results["metrics"][name], 4)
    figures["NDCG@10, 95 % interval"] = f"{low:.4f} to {high:.4f}"
    if results.get("refit"):
        for name in ("HR@10", "NDCG@10"):
            figures[f"{name} after refit"] = round(results["refit"]["metrics"][name], 4)
    for baseline, metrics in results["baselines"].items():
        figures[f"HR@10 of {baseline}"] = round(metrics["HR@10"], 4)
        figures[f"NDCG@10 of {baseline}"] = round(metrics["NDCG@10"], 4)
    return figures


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [round(v, _DIGITS) for v in value] if isinstance(value, tuple) else round(value, _DIGITS)
        for name, value in values.items()
    }
