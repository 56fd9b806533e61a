"""Grids: their files, and whole runs of a tiny one, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from training.__main__ import app
from training.compare.config import load_grid
from training.compare.grid import make_cells
from training.compare.results import half_width, steps_to_reach
from training.recipe import RecipeError

REPOSITORY = Path(__file__).parents[3]
TINY = REPOSITORY / "training" / "recipes" / "tiny.toml"
SMALL = ["items.demo.num_users=60", "finetuning.epochs=1", "finetuning.validation_rows=20",
         "grounding.stage_a.steps=4", "grounding.stage_a.batch_size=8", "base_model.made.steps=3",
         "base_model.held_out_tokens=200", "evaluation.max_rows=40"]  # fmt: skip
GRID = f"""
recipe = "{TINY}"
seeds = [0, 1]
arms = ["mean", "gti-a"]
"""


def write_grid(folder: Path, text: str = GRID) -> Path:
    path = folder / "two.toml"
    path.write_text(text)
    return path


def arguments(grid: Path, runs_dir: Path) -> list[str]:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    return ["compare", "--config", str(grid), "--runs-dir", str(runs_dir), *settings]


def results_of(runs_dir: Path) -> dict[str, Any]:
    return json.loads((runs_dir / "two" / "results.json").read_text())


def plain(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what time and machine decide."""
    runs = [{k: v for k, v in run.items() if "minutes" not in k} for run in results["runs"]]
    return {"runs": runs, "paired": results["paired"], "convergence": results["convergence"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny grid, run to its end."""
    folder = tmp_path_factory.mktemp("whole")
    done = CliRunner().invoke(app, arguments(write_grid(folder), folder / "runs"), catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.output.strip().splitlines()[-1])["runs"] == 4
    return folder / "runs"


def test_a_grid_gives_a_record_a_run_tests_curves_and_pictures(whole: Path) -> None:
    results = results_of(whole)
    assert [(run["arm"], run["base_model"], run["seed"]) for run in results["runs"]] == [
        ("mean", "base", 0), ("mean", "base", 1), ("gti-a", "base", 0), ("gti-a", "base", 1),
    ]  # fmt: skip
    for run in results["runs"]:
        assert {"metrics", "sft_steps", "minutes", "valid_NDCG@10"} <= set(run)
        assert 0 <= run["metrics"]["HR@10"] <= 1
    assert {(test["arm"], test["against"]) for test in results["paired"]} == {("gti-a", "mean")}
    assert {curve["arm"] for curve in results["convergence"]} == {"mean", "gti-a"}
    assert results["unfinished"] == results["unavailable"] == []
    report = (whole / "two" / "report.md").read_text()
    assert "| gti-a |" in report
    for name in ("convergence.png", "rows_base.png", "maps_base.png"):
        assert (whole / "two" / name).read_bytes().startswith(b"\x89PNG")


def test_equal_stages_lie_on_the_shelf_once(whole: Path) -> None:
    shelf = whole / "two" / "shelf"
    counts = {stage.name: sum(path.is_dir() for path in stage.iterdir()) for stage in shelf.iterdir()}
    shared = dict.fromkeys(("items", "base_model", "embeddings", "semantic_ids"), 1)
    assert counts == shared | dict.fromkeys(("grounding", "finetuning", "prior", "refit", "evaluation"), 4)


def test_a_finished_grid_is_not_run_again_and_more_arms_reuse_grounding(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "two" / "shelf").rglob("done.json")}
    more = GRID.replace(
        '"gti-a"]',
        '"gti-a", {label = "pairs", set = ["grounding.init=gti-a", "finetuning.alignment_share=0.3"]}]',
    ).replace("seeds = [0, 1]", "seeds = [0]")
    done = CliRunner().invoke(app, arguments(write_grid(whole, more), whole), catch_exceptions=False)
    assert done.exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in (whole / "two" / "shelf").rglob("done.json")}
    assert {path: after[path] for path in before} == before
    assert {path.parent.parent.name for path in set(after) - set(before)} == {
        "finetuning",
        "prior",
        "refit",
        "evaluation",
    }
    assert len(results_of(whole)["runs"]) == 3


@pytest.mark.slow
def test_a_killed_grid_goes_on_and_ends_with_the_same_numbers(whole: Path, tmp_path: Path) -> None:
    grid = write_grid(tmp_path)
    command = [sys.executable, "-m", "training", *arguments(grid, tmp_path / "runs")]
    for stage in ("grounding", "finetuning", "evaluation"):
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if list((tmp_path / "runs").glob(f"two/shelf/{stage}/*/started.json")):
                break
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["runs"] == 4
    CliRunner().invoke(app, arguments(write_grid(whole), whole), catch_exceptions=False)
    assert plain(results_of(tmp_path / "runs")) == plain(results_of(whole))


def test_validation_chooses_the_learning_rate_and_only_that_one_sees_test_rows(whole: Path) -> None:
    text = GRID.replace('["mean", "gti-a"]', '["mean"]').replace("[0, 1]", "[0]")
    grid = write_grid(whole, f"{text}\nlearning_rates = [1e-6, 2e-3]")
    done = CliRunner().invoke(app, arguments(grid, whole), catch_exceptions=False)
    assert done.exit_code == 0
    (run,) = results_of(whole)["runs"]
    scores = {}
    for rate in ("1e-06", "0.002"):
        folder = whole / "two" / f"mean--base--s0--lr{rate}"
        scores[float(rate)] = json.loads((folder / "finetuning" / "history.json").read_text())["best_NDCG@10"]
        assert (folder / "evaluation").exists() == (run["learning_rate"] == float(rate))
    assert scores[run["learning_rate"]] == max(scores.values())


def test_an_arm_that_cannot_run_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    titles = [f"{('red', 'blue')[n % 2]} {('cup', 'pot', 'jug')[n % 3]} number {n}" for n in range(40)]
    items = [{"item_id": f"i{n}", "title": title} for n, title in enumerate(titles)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    lines = [f"u{user},i{(7 * user + 3 * at) % 40},{at}" for user in range(30) for at in range(7)]
    (tmp_path / "seen.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    own = [
        f"items.own.items={tmp_path / 'items.jsonl'}",
        f"items.own.interactions={tmp_path / 'seen.csv'}",
        "items.source=own",
        "grounding.description_text=description",
        "semantic_ids.collisions=keep",
    ]
    text = GRID.replace('"mean", "gti-a"', '"description", "mean"').replace("[0, 1]", "[0]")
    settings = [word for setting in own for word in ("--set", setting)]
    done = CliRunner().invoke(
        app, [*arguments(write_grid(tmp_path, text), tmp_path / "runs"), *settings], catch_exceptions=False
    )
    assert done.exit_code == 0
    results = results_of(tmp_path / "runs")
    (refused,) = results["unavailable"]
    assert refused["arm"] == "description"
    assert "needs item texts, and no item has any" in refused["reason"]
    assert [run["arm"] for run in results["runs"]] == ["mean"]
    assert "description with base cannot run" in (tmp_path / "runs" / "two" / "report.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[0, 1]", "[0, 0]"), "each may stand there once"),
        (('"gti-a"]', '"gti-a"]\npairs = [["mean", "gti"]]'), "pairs names 'gti', which is none of the arms"),
        (("seeds", "seed"), "seed is no setting; did you mean seeds"),
        (('["mean", "gti-a"]', "[]"), "arms"),
    ],
)
def test_a_bad_grid_is_refused_in_a_sentence(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_grid(write_grid(tmp_path, GRID.replace(*change)))


def test_an_unknown_arm_is_refused_before_anything_runs(tmp_path: Path) -> None:
    grid = load_grid(write_grid(tmp_path, GRID.replace("gti-a", "gti-z")))
    with pytest.raises(RecipeError, match=r"grounding.init: .*'gti-z'"):
        make_cells(grid, tmp_path, [])


def test_steps_are_read_off_the_curve() -> None:
    assert steps_to_reach([10, 20, 30], [0.1, 0.2, 0.15], 0.15) == 15.0
    assert steps_to_reach([10, 20], [0.1, 0.2], 0.05) == 5.0
    assert steps_to_reach([10, 20], [0.1, 0.2], 0.3) is None
    assert steps_to_reach([10], [0.0], 0.0) == 0.0


def test_half_of_a_t_interval() -> None:
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5, abs=1e-5)
    assert half_width([1.0]) is None
