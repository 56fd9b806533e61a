"""A run by several processes, as torchrun starts them (training/learning/ranks.py).

Rank 0 goes through the stages as if it were alone. Where it comes to one that learns, it calls the
others: each runs that stage too, from the same folders of earlier stages, with a folder of its own to
write to that is thrown away; their loops meet rank 0's.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.learning.ranks import Ranks, together
from training.pipeline import STAGES, Stage, StageContext

if TYPE_CHECKING:
    from training.recipe import Recipe


def run_together(run: Callable[[Callable[[str], object]], None], recipe: Recipe, runs_dir: Path) -> None:
    """Rank 0 runs the pipeline, the others help it.

    Args:
        run: the pipeline; its argument is called with the name of every stage that learns.
        recipe: the same in every process.
        runs_dir: the same folder, seen by every process.
    """
    with together() as ranks:
        if ranks.number == 0:
            run(ranks.agree)
            ranks.agree("")
            return
        # What a stage prints is on rank 0's output already.
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            assist(recipe, runs_dir, ranks)


def assist(recipe: Recipe, runs_dir: Path, ranks: Ranks, known: Sequence[Stage] = STAGES) -> None:
    """Run every stage that rank 0 announces; returns when rank 0 is through."""
    by_name = {stage.name: stage for stage in known}
    while name := ranks.agree(None):
        stage = by_name[name]
        seeded = recipe.with_data_seed() if stage.uses_data_seed else recipe
        with tempfile.TemporaryDirectory(prefix=f"gtirec-rank{ranks.number}-") as folder:
            context = StageContext(seeded, runs_dir / recipe.name, stage, own_dir=Path(folder))
            importlib.import_module(stage.module).run(context)
