"""The runs of a grid, and how they are brought up to date.

Every run is an ordinary run of the pipeline with a folder of its own; stages that are equal lie once
on the grid's shelf. Several processes may work on one grid: each takes what no other is doing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.compare.config import GridConfig, Variant
from training.errors import ArmUnavailable, RunBusy
from training.pipeline import read_json, run_stages, stages_up_to
from training.recipe import Recipe, load_recipe
from training.report import print_result

_SHELF = "shelf"
_BUSY_WAIT_S = 10.0


@dataclass(frozen=True)
class Run:
    """One run of the grid.

    Attributes:
        arm, base_model: labels.
        seed: of grounding and fine-tuning.
        recipe: everything.
        runs_dir: the grid's folder; the run's own is `directory`.
    """

    arm: str
    base_model: str
    seed: int
    recipe: Recipe
    runs_dir: Path

    @property
    def directory(self) -> Path:
        """The run's folder."""
        return self.runs_dir / self.recipe.name

    def bring_up_to(self, stage: str) -> None:
        """Run the stages up to this one that are not done.

        Raises:
            RunBusy: another process works on this run.
            ArmUnavailable: the arm cannot run with this base model or data.
        """
        stages = stages_up_to(stage)
        results = run_stages(self.recipe, self.runs_dir, stages, shelf=self.runs_dir / _SHELF)
        for position, result in enumerate(results, start=1):
            if not result.is_skipped:
                print_result(result, position=position, total=len(stages))

    @property
    def validation(self) -> float:
        """Best validation NDCG@10 of the fine-tuned model."""
        return float(read_json(self.directory / "finetuning" / "history.json")["best_NDCG@10"])


@dataclass
class Cell:
    """An arm with a base model: its runs over seeds and learning rates, and what came of them.

    Attributes:
        arm, base_model: labels.
        runs: learning rate -> one run per seed. The recipe's own rate where the grid names none.
        chosen: runs of the rate that validation chose, once all are evaluated.
        unavailable: why the arm cannot run.
    """

    arm: str
    base_model: str
    runs: dict[float, list[Run]]
    chosen: list[Run] = field(default_factory=list)
    unavailable: str = ""

    @property
    def is_done(self) -> bool:
        """Nothing is left to run."""
        return bool(self.chosen or self.unavailable)

    def work(self) -> bool:
        """Do what no other process is doing. Returns whether the cell is done.

        Test rows are first touched here after the learning rate is chosen, by validation alone.
        """
        try:
            tried = [_try(run, "finetuning") for runs in self.runs.values() for run in runs]
            if not all(tried):
                return False
            best = max(self.runs.values(), key=lambda runs: sum(run.validation for run in runs))
            tried = [_try(run, "evaluation") for run in best]
            if not all(tried):
                return False
        except ArmUnavailable as error:
            self.unavailable = str(error)
            return True
        self.chosen = best
        return True


def _try(run: Run, stage: str) -> bool:
    """False if another process is at work on the run."""
    try:
        run.bring_up_to(stage)
    except RunBusy:
        return False
    return True


def make_cells(grid: GridConfig, runs_dir: Path, overrides: list[str]) -> list[Cell]:
    """All cells, arms outermost, so that what stands first in the file is whole first."""
    return [
        Cell(arm.label, base.label, _runs(grid, arm, base, runs_dir / grid.name, overrides))
        for arm in grid.arms
        for base in grid.base_models
    ]


def _runs(
    grid: GridConfig, arm: Variant, base: Variant, runs_dir: Path, overrides: list[str]
) -> dict[float, list[Run]]:
    runs: dict[float, list[Run]] = {}
    for rate in grid.learning_rates or (None,):
        suffix = f"--lr{rate:g}" if rate is not None else ""
        own: list[str] = [] if rate is None else [f"finetuning.learning_rate={rate!r}"]
        for seed in grid.seeds:
            name = f"{arm.label}--{base.label}--s{seed}{suffix}"
            settings = [f"seed={seed}", f"data_seed={grid.data_seed}", f'name="{name}"']
            recipe = load_recipe(grid.recipe, [*overrides, *base.set, *arm.set, *own, *settings])
            rate_used = recipe.finetuning.learning_rate
            runs.setdefault(rate_used, []).append(Run(arm.label, base.label, seed, recipe, runs_dir))
    return runs


def work_through(cells: list[Cell]) -> Iterator[Cell]:
    """Work until every cell is done; gives each as it is finished."""
    waiting = list(cells)
    while waiting:
        left: list[Cell] = []
        for cell in waiting:
            if cell.work():
                yield cell
            else:
                left.append(cell)
        waiting = left
        if waiting:
            time.sleep(_BUSY_WAIT_S)


def minutes_of(run: Run, stage: str) -> dict[str, Any]:
    """`minutes` and `cpu_minutes` of a finished stage."""
    done = read_json(run.directory / stage / "done.json")
    return {"minutes": done["minutes"], "cpu_minutes": done.get("cpu_minutes")}
