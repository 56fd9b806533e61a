"""Put results together: figures, intervals and baselines of one set of rows; write them down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from training.evaluation.baselines import ItemCF, count_targets, describe, popularity_lists, tune_itemcf
from training.evaluation.config import EvaluationConfig
from training.evaluation.evaluate import Ranking
from training.evaluation.intervals import bootstrap_intervals, paired_intervals
from training.evaluation.metrics import coverage, popularity_share, ranking_metrics, ranks_of
from training.evaluation.report import markdown
from training.evaluation.serving_order import ServingOrder
from training.items.dataset import Dataset

_DIGITS = 6


def baseline_ranks(
    dataset: Dataset, rows: pl.DataFrame, config: EvaluationConfig
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Ranks of the targets by every baseline, on the same rows, and the tuned ItemCF's settings."""
    targets, places = rows["target"].to_numpy(), config.beam_width
    popular = popularity_lists(count_targets(dataset), rows.height, places)
    ranks = {
        "popularity": ranks_of(popular, targets),
        "itemcf": ranks_of(ItemCF(dataset).recommend(rows["history"], places), targets),
    }
    if not config.tune_itemcf:
        return ranks, None
    settings = tune_itemcf(dataset, max_rows=config.tuning_rows)
    lists = ItemCF(dataset, settings).recommend(rows["history"], places)
    return ranks | {"itemcf_tuned": ranks_of(lists, targets)}, describe(settings)


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
        "baselines": {name: _rounded(ranking_metrics(ranks)) for name, ranks in others.items()},
        "differences": {
            name: _rounded(paired_intervals(ranking.ranks, ranks, **resampling))
            for name, ranks in others.items()
        },
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
) -> None:
    """Write results.json, report.md and rows.parquet."""
    (directory / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (directory / "report.md").write_text(markdown(results), encoding="utf-8")
    details = rows.select("user_id", "target").with_columns(
        rank=pl.Series(ranking.ranks, dtype=pl.Int32),
        sid_rank=pl.Series(ranking.sid_ranks, dtype=pl.Int32),
        recommended=pl.Series(ranking.lists[:, :10].astype(np.int32).tolist(), dtype=pl.List(pl.Int32)),
        **{f"{name}_rank": pl.Series(ranks, dtype=pl.Int32) for name, ranks in others.items()},
    )
    details.write_parquet(directory / "rows.parquet", compression="zstd")


def headline(results: dict[str, Any]) -> dict[str, Any]:
    """Figures worth a table row, with their floor."""
    low, high = results["intervals"]["NDCG@10"]
    figures: dict[str, Any] = {"test rows": results["test_rows"]}
    for name in ("HR@1", "HR@10", "NDCG@10"):
        figures[name] = round(results["metrics"][name], 4)
    figures["NDCG@10, 95 % interval"] = f"{low:.4f} to {high:.4f}"
    for baseline, metrics in results["baselines"].items():
        figures[f"HR@10 of {baseline}"] = round(metrics["HR@10"], 4)
        figures[f"NDCG@10 of {baseline}"] = round(metrics["NDCG@10"], 4)
    return figures


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [round(v, _DIGITS) for v in value] if isinstance(value, tuple) else round(value, _DIGITS)
        for name, value in values.items()
    }
