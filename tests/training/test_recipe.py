from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from training.__main__ import app, is_users_mistake
from training.compare.config import load_grid
from training.compare.grid import make_cells
from training.errors import TrainingError
from training.learning.batches import Stream
from training.pipeline import STAGES
from training.recipe import Recipe, RecipeError, load_recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 3\n[finetuning]\nepochs = 2\n")
    return path


def test_a_recipe_needs_nothing_but_a_name(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    assert (loaded.name, loaded.seed, loaded.finetuning.epochs) == ("mine", 3, 2)
    assert Recipe.model_validate_json(loaded.model_dump_json()) == loaded


def test_single_settings_are_overridden(recipe: Path) -> None:
    overrides = [
        "finetuning.epochs=7",
        "base_model.name=Qwen/Qwen3-0.6B",
        "grounding.stage_a.betas=[0.8, 0.9]",
        "name=other",
        'prompt.separator=" | "',
    ]
    loaded = load_recipe(recipe, overrides)
    assert loaded.finetuning.epochs == 7
    assert loaded.base_model.name == "Qwen/Qwen3-0.6B"
    assert loaded.grounding.stage_a.betas == (0.8, 0.9)
    assert (loaded.name, loaded.prompt.separator) == ("other", " | ")


@pytest.mark.parametrize("name", ["own", "own_small"])
def test_the_recipes_for_ones_own_shop_hold_what_the_experiments_learned(name: str) -> None:
    loaded = load_recipe(RECIPES / f"{name}.toml")
    assert loaded.items.source == "own" and loaded.prior.enabled
    assert loaded.encoder.collaborative_weight == 1.0


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("finetuning.epoch=3", "finetuning.epoch is no setting; did you mean epochs?"),
        ("grounding.stage_a.stepz=3", "grounding.stage_a.stepz is no setting; did you mean steps?"),
        ("fine.epochs=3", "fine is no setting"),
        ("finetuning.epochs=-1", r"finetuning.epochs: .*greater than 0 \(it is -1\)"),
        ("finetuning.epochs", "write it as section.key=value"),
        ("seed.x=1", "seed is a value, not a section"),
        ("base_model.made.num_heads=5", "base_model.made: num_kv_heads = 6 must divide num_heads = 5"),
        ("name=../evil", "name: .*pattern"),
    ],
)
def test_a_wrong_setting_is_named(recipe: Path, override: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(recipe, [override])


def test_a_file_that_is_no_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.toml cannot be read: No such file"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = ")
    with pytest.raises(RecipeError, match=r"bad.toml is not valid TOML"):
        load_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path: Path, tmp_path: Path) -> None:
    if "arms" in tomllib.loads(path.read_text()):
        grid = load_grid(path)
        assert grid.name == path.stem
        assert make_cells(grid, tmp_path, [])
    else:
        assert load_recipe(path).name == path.stem


def test_the_commands_are_all_and_the_stages() -> None:
    names = {command.name for command in app.registered_commands}
    assert {"all", *(stage.name for stage in STAGES)} <= names
    shown = CliRunner().invoke(app, ["all", "--help"], terminal_width=200)
    for option in ("--config", "--set", "--runs-dir", "--force"):
        assert option in shown.output


def test_a_users_mistake_is_one_sentence_and_exit_code_2(recipe: Path) -> None:
    command = [sys.executable, "-m", "training", "items", "--config", str(recipe)]
    done = subprocess.run(
        [*command, "--set", "items.sourc=demo"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "items.sourc is no setting; did you mean source?" in done.stderr
    assert done.stdout == ""


def test_only_errors_written_for_the_user_lose_their_traceback() -> None:
    def raised(action: object) -> BaseException:
        try:
            action()  # type: ignore[operator]
        except Exception as error:
            return error
        raise AssertionError

    assert is_users_mistake(TrainingError("no"))
    assert not is_users_mistake(KeyError("no"))
    assert not is_users_mistake(raised(lambda: json.loads("{")))
    assert not is_users_mistake(raised(lambda: int("x")))
    assert is_users_mistake(raised(lambda: Stream(0, 0)))
