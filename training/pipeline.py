"""Run the stages in order; skip what is done; resume what was killed.

A stage is a folder of `training` with a `stage.py` that holds `run(context) -> dict`. It reads the
folders of earlier stages, writes its own, and returns the numbers worth a table row. When it
returns, `done.json` is written with a fingerprint of everything the stage depends on: the seed, the
recipe's sections it reads, the input files those sections name, and the fingerprints of the stages
before it. A later run with the same fingerprint skips the stage; another fingerprint clears the
folder and runs it again; a folder without `done.json` is a stage that was killed, and the stage
itself resumes from what it finds.

Runs that differ only in later stages can share a shelf: every stage's folder then lies on it, named
by its fingerprint, and the run's folder holds links. `training.compare` works so.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import RunBusy, TrainingError
from training.fingerprint import fingerprint_of

if TYPE_CHECKING:
    from training.recipe import Recipe

_STARTED, _DONE, _LOCK = "started.json", "done.json", ".lock"


@dataclass(frozen=True)
class Stage:
    """One step of training.

    Attributes:
        name: command-line name and folder under the run directory.
        module: where `run(context)` is found.
        sections: recipe sections that decide its result.
        needs: stages whose folders it reads.
        uses_data_seed: its randomness comes from the recipe's `data_seed`.
        revision: raised when a change of the code changes the stage's result.
        learns: it trains a model, and several processes do so together.
    """

    name: str
    module: str
    sections: tuple[str, ...]
    needs: tuple[str, ...] = ()
    uses_data_seed: bool = False
    revision: int = 1
    learns: bool = False


STAGES: tuple[Stage, ...] = (
    Stage("items", "training.items.stage", ("items",), uses_data_seed=True),
    Stage(
        "base_model",
        "training.base_model.stage",
        ("base_model",),
        ("items",),
        uses_data_seed=True,
        learns=True,
    ),
    Stage(
        "embeddings",
        "training.semantic_ids.embeddings_stage",
        ("encoder",),
        ("items", "base_model"),
        uses_data_seed=True,
    ),
    Stage(
        "semantic_ids",
        "training.semantic_ids.stage",
        ("semantic_ids",),
        ("items", "embeddings"),
        uses_data_seed=True,
    ),
    Stage(
        "grounding",
        "training.grounding.stage",
        ("grounding", "prompt"),
        ("items", "base_model", "semantic_ids"),
        learns=True,
    ),
    Stage(
        "finetuning",
        "training.finetuning.stage",
        ("finetuning", "prompt"),
        ("items", "semantic_ids", "grounding"),
        learns=True,
    ),
    Stage(
        "prior",
        "training.prior.stage",
        ("prior",),
        ("items", "embeddings", "semantic_ids", "grounding", "finetuning"),
        revision=2,
    ),
    Stage(
        "refit",
        "training.refit.stage",
        ("refit",),
        ("items", "embeddings", "semantic_ids", "grounding", "finetuning", "prior"),
        learns=True,
    ),
    Stage(
        "evaluation",
        "training.evaluation.stage",
        ("evaluation",),
        ("items", "semantic_ids", "grounding", "finetuning", "prior", "refit"),
        revision=3,
    ),
    Stage(
        "export",
        "training.export.stage",
        ("export",),
        (
            "items",
            "base_model",
            "embeddings",
            "semantic_ids",
            "grounding",
            "finetuning",
            "prior",
            "refit",
            "evaluation",
        ),
    ),
)


@dataclass(frozen=True)
class StageContext:
    """What a stage is given: the resolved recipe, with the stage's own seed, and where things lie.

    `own_dir` replaces the stage's folder in processes that only help (training/several.py).
    """

    recipe: Recipe
    run_dir: Path
    stage: Stage
    own_dir: Path | None = None

    @property
    def dir(self) -> Path:
        """This stage's own folder; exists."""
        return self.own_dir or self.run_dir / self.stage.name

    def of(self, name: str) -> Path:
        """Folder of an earlier stage."""
        if name not in self.stage.needs:
            raise AssertionError(f"stage {self.stage.name} does not declare that it needs {name}")
        return self.run_dir / name


@dataclass(frozen=True)
class StageResult:
    """How one stage went.

    Attributes:
        stage: which one.
        summary: numbers worth a table row.
        minutes: time it took, killed attempts included.
        is_skipped: True if it was done before.
    """

    stage: Stage
    summary: dict[str, Any]
    minutes: float
    is_skipped: bool


def stages_up_to(name: str, stages: Sequence[Stage] = STAGES) -> tuple[Stage, ...]:
    """The stage of that name and all it needs, in order. "all" means every stage."""
    by_name = {stage.name: stage for stage in stages}
    if name == "all":
        return tuple(stages)
    if name not in by_name:
        raise TrainingError(f"there is no stage '{name}'; stages are {', '.join(by_name)}")
    wanted: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in wanted:
            wanted.add(current)
            waiting.extend(by_name[current].needs)
    return tuple(stage for stage in stages if stage.name in wanted)


def run_stages(
    recipe: Recipe,
    runs_dir: Path,
    stages: Sequence[Stage],
    *,
    force: Sequence[str] = (),
    known: Sequence[Stage] = STAGES,
    shelf: Path | None = None,
    announce: Callable[[str], object] = lambda name: None,
) -> Iterator[StageResult]:
    """Bring the given stages up to date, one result each.

    Args:
        recipe: what to run.
        runs_dir: the run's folder is `runs_dir/<recipe name>`.
        stages: in order; every stage's needs must come before it.
        force: names of stages to run again although they are done; what needs them is then no
            longer done either.
        known: all stages there are.
        shelf: where stages lie that several runs share; default: in the run's folder. What another
            process is making there is waited for.
        announce: called with the name of a stage that learns, before it runs: other processes join in.

    Raises:
        RunBusy: the run is in use by another process.
        TrainingError: `force` names no stage of this run.
    """
    unknown = sorted(set(force) - {stage.name for stage in stages})
    if unknown:
        names = ", ".join(stage.name for stage in stages)
        raise TrainingError(f"--force {unknown[0]}: not a stage of this command; they are {names}")
    run_dir = runs_dir / recipe.name
    run_dir.mkdir(parents=True, exist_ok=True)
    with _only_one_process(run_dir):
        (run_dir / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _forget(run_dir, force, known)
        fingerprints: dict[str, str] = {}
        for stage in stages:
            seeded = recipe.with_data_seed() if stage.uses_data_seed else recipe
            context = StageContext(seeded, run_dir, stage)
            fingerprint = fingerprint_of(seeded, stage, [fingerprints[need] for need in stage.needs])
            fingerprints[stage.name] = fingerprint
            with _on_shelf(shelf, context.dir, fingerprint):
                result = _bring_up_to_date(context, fingerprint, announce)
            yield result


def _forget(run_dir: Path, names: Sequence[str], known: Sequence[Stage]) -> None:
    """Make stages, and all that need them, count as never begun. `known` is in order."""
    forgotten = set(names)
    for stage in known:
        if stage.name in forgotten or forgotten.intersection(stage.needs):
            forgotten.add(stage.name)
            (run_dir / stage.name / _DONE).unlink(missing_ok=True)
            (run_dir / stage.name / _STARTED).unlink(missing_ok=True)


def _bring_up_to_date(
    context: StageContext, fingerprint: str, announce: Callable[[str], object]
) -> StageResult:
    """Skip, resume or run one stage."""
    done = read_json(context.dir / _DONE)
    if done and done["fingerprint"] == fingerprint:
        return StageResult(context.stage, done["summary"], done["minutes"], is_skipped=True)
    seconds_before = 0.0
    started = read_json(context.dir / _STARTED)
    if done or not started or started["fingerprint"] != fingerprint:
        _clear(context.dir)
    else:
        seconds_before = started["seconds_before"] + _seconds_of_killed_attempt(context.dir, started)
    attempt = {"fingerprint": fingerprint, "started_at": time.time(), "seconds_before": seconds_before}
    _write_json(context.dir / _STARTED, attempt)
    began, cpu_began = time.perf_counter(), time.process_time()
    if context.stage.learns:
        announce(context.stage.name)
    summary = importlib.import_module(context.stage.module).run(context)
    minutes = round((time.perf_counter() - began + seconds_before) / 60, 3)
    # Of a killed attempt only the clock is known.
    cpu_minutes = None if seconds_before else round((time.process_time() - cpu_began) / 60, 3)
    done = {"fingerprint": fingerprint, "summary": summary, "minutes": minutes, "cpu_minutes": cpu_minutes}
    _write_json(context.dir / _DONE, done)
    return StageResult(context.stage, read_json(context.dir / _DONE)["summary"], minutes, is_skipped=False)


def _seconds_of_killed_attempt(directory: Path, started: dict[str, Any]) -> float:
    """From the attempt's start to the last file it wrote: what is known of a killed attempt."""
    times = [path.stat().st_mtime for path in directory.rglob("*") if path.is_file()]
    return max(0.0, max(times, default=0.0) - started["started_at"])


def _clear(directory: Path) -> None:
    """Empty a stage's folder. `done.json` goes first, so that a kill in between leaves no lie."""
    (directory / _DONE).unlink(missing_ok=True)
    (directory / _STARTED).unlink(missing_ok=True)
    place = directory.resolve()  # of a stage on a shelf, the link stays
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)


@contextlib.contextmanager
def _on_shelf(shelf: Path | None, directory: Path, fingerprint: str) -> Iterator[None]:
    """Link a stage's folder to its place on the shelf, and keep other processes off that place."""
    if shelf is None:
        yield
        return
    if directory.exists() and not directory.is_symlink():
        raise TrainingError(f"{directory} was made without a shelf; use another --runs-dir, or remove it")
    place = (shelf / directory.name / fingerprint).resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    directory.unlink(missing_ok=True)
    directory.symlink_to(os.path.relpath(place, directory.parent.resolve()))
    with place.with_suffix(_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _only_one_process(run_dir: Path) -> Iterator[None]:
    """Hold the run's lock; the kernel lets go of it however the process ends."""
    with (run_dir / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunBusy(
                f"{run_dir} is being worked on by another process; wait for it, or use another --runs-dir"
            ) from error
        yield


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty dict if the file is missing or was cut off by a kill."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, default=_plain) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _plain(value: Any) -> Any:
    """NumPy scalars and paths as JSON knows them."""
    return value.item() if hasattr(value, "item") else str(value)
