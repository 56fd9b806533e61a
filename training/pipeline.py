"""Run the stages in order; skip what is done; resume what was killed.

A stage is a folder of `training` with a `stage.py` that holds `run(context) -> dict`. It reads the
folders of earlier stages, writes its own, and returns the numbers worth a table row. When it
returns, `done.json` is written with a fingerprint of everything the stage depends on: the recipe's
sections it reads, and the fingerprints of the stages before it. A later run with the same
fingerprint skips the stage; another fingerprint clears the folder and runs it again; a folder
without `done.json` is a stage that was killed, and the stage itself resumes from what it finds.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """One step of training.

    Attributes:
        name: command-line name and folder under the run directory.
        module: where `run(context)` is found.
        sections: recipe sections that decide its result.
        needs: stages whose folders it reads.
    """

    name: str
    module: str
    sections: tuple[str, ...]
    needs: tuple[str, ...] = ()


STAGES: tuple[Stage, ...] = (
    Stage("items", "training.items.stage", ("items",)),
    Stage("base_model", "training.base_model.stage", ("base_model",), ("items",)),
    Stage("embeddings", "training.semantic_ids.embeddings_stage", ("encoder",), ("items", "base_model")),
    Stage("semantic_ids", "training.semantic_ids.stage", ("semantic_ids",), ("items", "embeddings")),
    Stage(
        "grounding",
        "training.grounding.stage",
        ("grounding", "prompt"),
        ("items", "base_model", "semantic_ids"),
    ),
    Stage(
        "finetuning",
        "training.finetuning.stage",
        ("finetuning", "prompt"),
        ("items", "semantic_ids", "grounding"),
    ),
    Stage("evaluation", "training.evaluation.stage", ("evaluation",), ("items", "semantic_ids", "finetuning")),
    Stage(
        "export",
        "training.export.stage",
        ("export",),
        ("items", "embeddings", "semantic_ids", "grounding", "finetuning", "evaluation"),
    ),
)


@dataclass(frozen=True)
class StageContext:
    """What a stage is given: the resolved recipe and where things lie."""

    recipe: Recipe
    run_dir: Path
    stage: Stage

    @property
    def dir(self) -> Path:
        """This stage's own folder; exists."""
        return self.run_dir / self.stage.name

    def of(self, name: str) -> Path:
        """Folder of an earlier stage."""
        if name not in self.stage.needs:
            raise AssertionError(f"stage {self.stage.name} does not declare that it needs {name}")
        return self.run_dir / name
