"""Fingerprints: what a stage's result depends on, as one hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from training.pipeline import Stage
    from training.recipe import Recipe

_HASHED_UP_TO_BYTES = 64 * 2**20


def fingerprint_of(recipe: Recipe, stage: Stage, before: Sequence[str]) -> str:
    """Hash of all that decides a stage's result.

    Args:
        recipe: its seed and the stage's sections count, and the files those sections name.
        stage: which stage.
        before: fingerprints of the stages it needs.

    Returns:
        32 hex digits.
    """
    sections = {name: recipe.section(name) for name in stage.sections}
    parts: dict[str, Any] = {
        "stage": stage.name,
        "revision": stage.revision,
        "seed": recipe.seed,
        "sections": {name: section.model_dump(mode="json") for name, section in sections.items()},
        "files": {
            str(path): describe_path(path)
            for section in sections.values()
            for path in paths_in(section)
            if path.exists()
        },
        "before": list(before),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def paths_in(section: BaseModel) -> Iterator[Path]:
    """Every file or folder a section names: its `Path` fields, and what `input_paths()` adds."""
    extra = getattr(section, "input_paths", None)
    if extra is not None:
        yield from extra()
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            yield value
        elif isinstance(value, BaseModel):
            yield from paths_in(value)


def describe_path(path: Path) -> Any:
    """What a file or folder holds: a hash of small files, size and time of big ones."""
    if path.is_dir():
        inside = sorted(entry for entry in path.rglob("*") if entry.is_file())
        return {str(entry.relative_to(path)): _size_and_time(entry) for entry in inside}
    if path.stat().st_size <= _HASHED_UP_TO_BYTES:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return _size_and_time(path)


def _size_and_time(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]
