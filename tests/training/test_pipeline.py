from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.errors import TrainingError
from training.fingerprint import describe_path, fingerprint_of
from training.pipeline import STAGES, Stage, StageContext, run_stages, stages_up_to
from training.recipe import Recipe

FIRST = Stage("first", "fake_first", ("items",))
SECOND = Stage("second", "fake_second", ("prompt",), ("first",))
THIRD = Stage("third", "fake_third", ("export",), ("first", "second"))
ALL = (FIRST, SECOND, THIRD)
Run = Callable[..., dict[str, bool]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three stages that each append their name to a file of their own and to this list."""
    done: list[str] = []

    def make(stage: Stage) -> Any:
        def run(context: StageContext) -> dict[str, Any]:
            done.append(stage.name)
            notes = context.dir / "notes.txt"
            before = notes.read_text() if notes.exists() else ""
            notes.write_text(before + "x")
            return {"length": len(before) + 1}

        return run

    for stage in ALL:
        module: Any = types.ModuleType(stage.module)
        module.run = make(stage)
        monkeypatch.setitem(sys.modules, stage.module, module)
    return done


@pytest.fixture
def run(calls: list[str], tmp_path: Path) -> Run:
    """Bring all three stages up to date; gives name -> was it skipped."""

    def run_all(recipe: Recipe | None = None, **options: Any) -> dict[str, bool]:
        recipe = recipe or Recipe(name="r")
        return {r.stage.name: r.is_skipped for r in run_stages(recipe, tmp_path, ALL, known=ALL, **options)}

    return run_all


def test_done_stages_are_skipped(run: Run, calls: list[str], tmp_path: Path) -> None:
    assert run() == {"first": False, "second": False, "third": False}
    assert run() == {"first": True, "second": True, "third": True}
    assert calls == ["first", "second", "third"]
    assert Recipe.model_validate_json((tmp_path / "r" / "recipe.json").read_text()) == Recipe(name="r")


def test_a_changed_section_runs_its_stage_and_what_needs_it(run: Run) -> None:
    run()
    changed = Recipe.model_validate({"name": "r", "prompt": {"separator": "; "}})
    assert run(changed) == {"first": True, "second": False, "third": False}
    assert run(changed) == {"first": True, "second": True, "third": True}
    unrelated = Recipe.model_validate(
        {"name": "r", "prompt": {"separator": "; "}, "finetuning": {"epochs": 2}}
    )
    assert run(unrelated) == {"first": True, "second": True, "third": True}
    reseeded = unrelated.model_copy(update={"seed": 1})
    assert run(reseeded) == {"first": False, "second": False, "third": False}


def test_a_rerun_starts_in_an_empty_folder(run: Run, tmp_path: Path) -> None:
    run()
    run(force=["second"])
    assert (tmp_path / "r" / "second" / "notes.txt").read_text() == "x"
    with pytest.raises(TrainingError, match="--force fourth: not a stage of this command"):
        run(force=["fourth"])


def test_a_forced_stage_takes_what_needs_it_along_even_through_a_kill(run: Run, tmp_path: Path) -> None:
    run()
    assert run(force=["second"]) == {"first": True, "second": False, "third": False}
    working = run_stages(Recipe(name="r"), tmp_path, ALL, force=["first"], known=ALL)
    assert next(working).is_skipped is False
    working.close()
    assert run() == {"first": True, "second": False, "third": False}


def test_a_killed_stage_resumes_in_its_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = sys.modules["fake_second"]

    def killed(context: StageContext) -> dict[str, Any]:
        plain.run(context)
        raise KeyboardInterrupt

    module: Any = types.ModuleType("fake_second")
    module.run = killed
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(sys.modules, "fake_second", module)
        run()
    assert run() == {"first": True, "second": False, "third": False}
    assert (tmp_path / "r" / "second" / "notes.txt").read_text() == "xx"
    assert json.loads((tmp_path / "r" / "second" / "done.json").read_text())["summary"] == {"length": 2}


def test_what_a_killed_stage_left_is_not_resumed_under_other_settings(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = types.ModuleType("fake_second")
    plain = sys.modules["fake_second"]

    def killed(context: StageContext) -> dict[str, Any]:
        plain.run(context)
        raise KeyboardInterrupt

    module.run = killed
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(sys.modules, "fake_second", module)
        run()
    run(Recipe.model_validate({"name": "r", "prompt": {"separator": "; "}}))
    assert (tmp_path / "r" / "second" / "notes.txt").read_text() == "x"


def test_a_cut_off_done_file_counts_as_not_done(run: Run, tmp_path: Path) -> None:
    run()
    (tmp_path / "r" / "third" / "done.json").write_text('{"finger')
    assert run() == {"first": True, "second": True, "third": False}


def test_two_processes_cannot_work_on_one_run(run: Run, tmp_path: Path) -> None:
    working = run_stages(Recipe(name="r"), tmp_path, ALL, known=ALL)
    next(working)
    with pytest.raises(TrainingError, match="worked on by another process"):
        run()
    working.close()
    assert run()["first"] is True


def test_a_changed_input_file_changes_the_fingerprint(tmp_path: Path) -> None:
    data = tmp_path / "items.jsonl"
    data.write_text("a")
    recipe = Recipe.model_validate({"name": "r", "items": {"own": {"items": str(data)}}})
    before = fingerprint_of(recipe, FIRST, [])
    assert fingerprint_of(recipe, FIRST, []) == before
    data.write_text("b")
    assert fingerprint_of(recipe, FIRST, []) != before
    assert fingerprint_of(recipe, SECOND, ["x"]) != fingerprint_of(recipe, SECOND, ["y"])


def test_a_model_folder_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    stage = next(stage for stage in STAGES if stage.name == "base_model")
    (tmp_path / "config.json").write_text("{}")
    recipe = Recipe.model_validate({"name": "r", "base_model": {"name": str(tmp_path)}})
    before = fingerprint_of(recipe, stage, [])
    (tmp_path / "model.safetensors").write_text("weights")
    assert fingerprint_of(recipe, stage, []) != before
    assert set(describe_path(tmp_path)) == {"config.json", "model.safetensors"}


def test_a_stage_brings_what_it_needs_and_nothing_more() -> None:
    names = [stage.name for stage in stages_up_to("semantic_ids")]
    assert names == ["items", "base_model", "embeddings", "semantic_ids"]
    assert stages_up_to("all") == STAGES
    with pytest.raises(TrainingError, match="there is no stage 'cook'"):
        stages_up_to("cook")


def test_every_stage_needs_only_what_comes_before_it() -> None:
    for position, stage in enumerate(STAGES):
        assert set(stage.needs) <= {before.name for before in STAGES[:position]}
        assert set(stage.sections) <= set(Recipe.model_fields)
    with pytest.raises(AssertionError, match="does not declare"):
        StageContext(Recipe(name="r"), Path("runs"), STAGES[0]).of("export")
