"""A recipe: one TOML file = one reproducible run.

Every section is the config of one folder of `training`; every setting has a default, and an unknown
key is an error that names it. `--set section.key=value` changes single settings.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.base_model.config import BaseModelConfig
from training.errors import TrainingError
from training.evaluation.config import EvaluationConfig
from training.export.config import ExportConfig
from training.finetuning.config import FinetuningConfig
from training.grounding.config import GroundingConfig, PromptConfig
from training.items.config import ItemsConfig
from training.prior.config import PriorConfig
from training.refit.config import RefitConfig
from training.semantic_ids.config import EncoderConfig, SemanticIdsConfig


class RecipeError(TrainingError):
    """The recipe cannot be used; the message names the file and the key."""


class Recipe(BaseModel):
    """Everything that decides the result of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the run and of its folder; the file's name if not given",
    )
    seed: int = Field(default=0, ge=0, description="all randomness of a run comes from this number")
    data_seed: int | None = Field(
        default=None,
        ge=0,
        description="seed of the stages before grounding, so that runs with other seeds can share items, "
        "base model and semantic IDs; default: seed",
    )
    items: ItemsConfig = ItemsConfig()
    encoder: EncoderConfig = EncoderConfig()
    semantic_ids: SemanticIdsConfig = SemanticIdsConfig()
    base_model: BaseModelConfig = BaseModelConfig()
    grounding: GroundingConfig = GroundingConfig()
    prompt: PromptConfig = PromptConfig()
    finetuning: FinetuningConfig = FinetuningConfig()
    prior: PriorConfig = PriorConfig()
    refit: RefitConfig = RefitConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()

    def with_data_seed(self) -> Recipe:
        """The recipe as the stages before grounding see it: `seed` is their seed."""
        return self if self.data_seed is None else self.model_copy(update={"seed": self.data_seed})

    def section(self, name: str) -> BaseModel:
        """One section by its name in the TOML file."""
        return getattr(self, name)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `--set` overrides.

    Args:
        path: TOML file.
        overrides: "section.key=value"; the value is read as TOML, or as plain text if it is none.

    Raises:
        RecipeError: the file is missing or no TOML, or a setting is unknown or out of range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} is not valid TOML: {error}") from error
    values.setdefault("name", path.stem)
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe(error, Recipe)}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    """Put one "a.b=c" into the nested dict."""
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: write it as section.key=value")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # `--set base_model.name=Qwen/Qwen3-0.6B` needs no quotes
    table = values
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override}: {part} is a value, not a section")
    table[parts[-1]] = value


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """All faults of a recipe in one sentence each, with the nearest known key for an unknown one."""
    faults = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _known_keys(model, fault["loc"][:-1])
            near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            faults.append(f"{where} is no setting; {hint}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            value = "" if isinstance(fault["input"], dict) else f" (it is {fault['input']!r})"
            faults.append(f"{where}: {message}{value}" if where else message)
    return "; ".join(faults)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the (sub)section that a fault lies in."""
    current: Any = model
    for part in location:
        field = current.model_fields.get(str(part))
        current = field.annotation if field is not None else None
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return []
    return list(current.model_fields)
