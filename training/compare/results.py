"""Gather what a grid's runs wrote: one record a run, means over seeds, paired tests, steps saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from training.compare.config import GridConfig
from training.compare.grid import Cell, Run, minutes_of
from training.compare.paired import ArmRanks, all_tests
from training.evaluation import provenance
from training.pipeline import read_json

# Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom; beyond that 2 is near enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_SHOWN = ("HR@1", "HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10")
_ROWS_TRAINED_BY = ("grounding", "finetuning")


def gather(grid: GridConfig, cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything about the finished cells, as JSON knows it."""
    done = [cell for cell in cells if cell.chosen]
    paired: list[dict[str, Any]] = []
    for base in grid.base_models:
        ranks = {cell.arm: _ranks(cell.chosen) for cell in done if cell.base_model == base.label}
        paired += all_tests(
            ranks, grid.against, grid.pairs, base_model=base.label, num_resamples=grid.num_resamples
        )
    return {
        "grid": grid.name,
        "recipe": grid.recipe.name,
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "seeds": list(grid.seeds),
        "runs": [_record(run) for cell in done for run in cell.chosen],
        "summary": [_summary(cell) for cell in done],
        "paired": paired,
        "convergence": [
            curve
            for base in grid.base_models
            for curve in _convergence([c for c in done if c.base_model == base.label], grid.against)
        ],
        "unavailable": [
            {"arm": cell.arm, "base_model": cell.base_model, "reason": cell.unavailable}
            for cell in cells
            if cell.unavailable
        ],
        "unfinished": [
            {"arm": cell.arm, "base_model": cell.base_model} for cell in cells if not cell.is_done
        ],
    }


def _record(run: Run) -> dict[str, Any]:
    """One run: what it scored and what it took. Minutes are of grounding and fine-tuning alone."""
    history = read_json(run.directory / "finetuning" / "history.json")
    results = read_json(run.directory / "evaluation" / "results.json")
    spent = [minutes_of(run, stage) for stage in _ROWS_TRAINED_BY]
    cpu = [part["cpu_minutes"] for part in spent]
    return {
        "arm": run.arm,
        "base_model": run.base_model,
        "seed": run.seed,
        "learning_rate": run.recipe.finetuning.learning_rate,
        "metrics": results["metrics"],
        "valid_NDCG@10": round(run.validation, 6),
        "sft_steps": history["best_step"],
        "minutes": round(sum(part["minutes"] for part in spent), 2),
        "cpu_minutes": None if None in cpu else round(sum(cpu), 2),
    }


def _summary(cell: Cell) -> dict[str, Any]:
    """Mean over seeds, half the width of its 95 % t interval, and minutes."""
    records = [_record(run) for run in cell.chosen]
    metrics = {}
    for name in _SHOWN:
        values = [record["metrics"][name] for record in records]
        metrics[name] = {"mean": round(float(np.mean(values)), 6), "half_width": half_width(values)}
    cpu = [record["cpu_minutes"] for record in records if record["cpu_minutes"] is not None]
    return {
        "arm": cell.arm,
        "base_model": cell.base_model,
        "num_seeds": len(records),
        "learning_rate": records[0]["learning_rate"],
        "metrics": metrics,
        "valid_NDCG@10": round(float(np.mean([record["valid_NDCG@10"] for record in records])), 6),
        "sft_steps": round(float(np.mean([record["sft_steps"] for record in records])), 1),
        "minutes": round(float(np.mean([record["minutes"] for record in records])), 2),
        "cpu_minutes": round(float(np.mean(cpu)), 2) if cpu else None,
    }


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the mean, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    quantile = _T[len(values) - 2] if len(values) - 2 < len(_T) else 2.0
    return round(float(quantile * np.std(values, ddof=1) / np.sqrt(len(values))), 6)


def _ranks(runs: Sequence[Run]) -> ArmRanks:
    frames = [pl.read_parquet(run.directory / "evaluation" / "rows.parquet") for run in runs]
    return ArmRanks(np.stack([frame["rank"].to_numpy() for frame in frames]), frames[0]["user_id"].to_numpy())


def _convergence(cells: Sequence[Cell], against: str) -> list[dict[str, Any]]:
    """Validation NDCG@10 by step, mean over seeds, and when an arm reaches what `against` reached at best."""
    curves = [
        {
            "arm": cell.arm,
            "base_model": cell.base_model,
            **dict(zip(("steps", "valid_NDCG@10"), _curve(cell), strict=True)),
        }
        for cell in cells
    ]
    reference = next((curve for curve in curves if curve["arm"] == against), None)
    if reference is not None:
        level = max(reference["valid_NDCG@10"])
        needed = steps_to_reach(reference["steps"], reference["valid_NDCG@10"], level)
        assert needed is not None
        for curve in curves:
            steps = steps_to_reach(curve["steps"], curve["valid_NDCG@10"], level)
            curve[f"steps_to_best_of_{against}"] = steps
            curve["steps_saved"] = None if steps is None else round(needed - steps, 1)
    return curves


def _curve(cell: Cell) -> tuple[list[int], list[float]]:
    """Steps at which every seed was validated, and the mean there."""
    notes = [read_json(run.directory / "finetuning" / "history.json")["evaluations"] for run in cell.chosen]
    by_seed = [{note["step"]: note["NDCG@10"] for note in evaluations} for evaluations in notes]
    steps = sorted(set.intersection(*(set(values) for values in by_seed)))
    return steps, [round(float(np.mean([values[step] for values in by_seed])), 6) for step in steps]


def steps_to_reach(steps: Sequence[int], values: Sequence[float], level: float) -> float | None:
    """First step at which the curve, straight between its points and 0 at step 0, reaches a level."""
    before_step, before = 0, 0.0
    for step, value in zip(steps, values, strict=True):
        if value >= level:
            share = (level - before) / (value - before) if value > before else 0.0
            return round(before_step + (step - before_step) * share, 1)
        before_step, before = step, value
    return None
