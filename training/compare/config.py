"""What a grid is: a TOML file that names a recipe, the arms, the base models and the seeds."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from training.recipe import RecipeError, describe

_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Variant(BaseModel):
    """An arm or a base model: a label for tables, and the settings that make it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(pattern=_LABEL, description="name in tables and folders")
    set: tuple[str, ...] = Field(default=(), description="settings as for --set, e.g. grounding.init=mean")


class GridConfig(BaseModel):
    """A grid of runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_LABEL, description="folder of the grid; the file's name if not given")
    recipe: Path = Field(description="what all runs share; relative to this file")
    arms: tuple[Variant, ...] = Field(
        min_length=1,
        description="in the order in which they run; a plain word is short for that grounding.init",
    )
    base_models: tuple[Variant, ...] = Field(default=(Variant(label="base"),), min_length=1)
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="of grounding and fine-tuning"
    )
    data_seed: int = Field(
        default=0, ge=0, description="of items, base model and semantic IDs, which all share"
    )
    learning_rates: tuple[float, ...] = Field(
        default=(),
        description="fine-tuning's rates to try for every arm; the one with the best mean validation NDCG@10 "
        "over the seeds is kept, and it alone sees test rows. Empty: the recipe's own rate",
    )
    against: str = Field(default="mean", description="the arm that every other one is tested against")
    pairs: tuple[tuple[str, str], ...] = Field(
        default=(), description="further pairs to test, first minus second"
    )
    num_resamples: int = Field(default=2000, ge=100, le=100_000, description="bootstrap resamples of a test")

    @field_validator("arms", mode="before")
    @classmethod
    def _words(cls, arms: Any) -> Any:
        if not isinstance(arms, list | tuple):
            return arms
        return [
            {"label": arm, "set": [f"grounding.init={arm}"]} if isinstance(arm, str) else arm for arm in arms
        ]

    @model_validator(mode="after")
    def _fits(self) -> GridConfig:
        for what, values in (
            ("arms", [arm.label for arm in self.arms]),
            ("base_models", [base.label for base in self.base_models]),
            ("seeds", list(self.seeds)),
            ("learning_rates", list(self.learning_rates)),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} = {values}: each may stand there once")
        named = {arm.label for arm in self.arms}
        for first, second in self.pairs:
            for label in (first, second):
                if label not in named:
                    raise ValueError(f"pairs names '{label}', which is none of the arms {sorted(named)}")
        return self


def load_grid(path: Path) -> GridConfig:
    """Read a grid's file.

    Raises:
        RecipeError: the file is missing or no TOML, or a setting is unknown or out of range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"the grid {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"the grid {path} is not valid TOML: {error}") from error
    values.setdefault("name", path.stem)
    try:
        grid = GridConfig.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"the grid {path}: {describe(error, GridConfig)}") from error
    return grid.model_copy(update={"recipe": path.parent / grid.recipe})
