"""Where a bundle comes from: recipe, seed, versions, commit, data and the numbers of every stage.

A bundle is content-addressed, so nothing here may differ between two runs of the same recipe on the
same code: no times, no machine, no folders of a machine.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from service.bundle.layout import hash_file
from training.evaluation import provenance

if TYPE_CHECKING:
    from training.pipeline import StageContext

_DATA_FILES = ("items.parquet", "train.parquet", "valid.parquet", "test.parquet")
_OF_THE_MACHINE = ("minute", "second", "hardware", "device", "run_dir")
_NOT_METRICS = (*_OF_THE_MACHINE, "commit", "recipe", "seed", "published", "itemcf_tuned_settings")


def bundle_provenance(context: StageContext) -> dict[str, Any]:
    """What the manifest says about the bundle's origin."""
    return {
        "recipe": plain_section(context.recipe),
        "seed": context.recipe.seed,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "data_sha256": hash_data(context.of("items")),
        "stages": {name: stage_numbers(context.of(name)) for name in context.stage.needs},
    }


def bundle_metrics(results: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says about quality: figures, intervals and baselines, without the machine."""
    return {key: value for key, value in results.items() if not key.startswith(_NOT_METRICS)}


def plain_section(section: BaseModel) -> Any:
    """A recipe as JSON, absolute paths cut to their last part."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute()):
            return Path(value).name if Path(value).is_absolute() else Path(value).as_posix()
        return value

    return plain(section.model_dump())


def hash_data(directory: Path) -> str:
    """One hash over items and rows. 64 hex digits."""
    digest = hashlib.sha256()
    for name in _DATA_FILES:
        digest.update(hash_file(directory / name).encode())
    return digest.hexdigest()


def stage_numbers(directory: Path) -> dict[str, Any]:
    """The numbers a stage reported, less those of the machine; empty if the stage left no note."""
    try:
        summary = json.loads((directory / "done.json").read_text(encoding="utf-8"))["summary"]
    except (OSError, ValueError, KeyError):
        return {}
    return {
        name: value
        for name, value in summary.items()
        if not any(word in name.lower() for word in _OF_THE_MACHINE)
        and not (isinstance(value, str) and Path(value).is_absolute())
    }
