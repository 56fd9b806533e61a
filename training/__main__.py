"""Train a model and pack it as a bundle.

    python -m training all --config training/recipes/demo.toml
    python -m training finetuning --config training/recipes/own.toml --set finetuning.epochs=3
    python -m training compare --config training/recipes/arms.toml
    torchrun --nproc-per-node 2 -m training all --config training/recipes/demo.toml

A stage that is done is skipped, a killed one resumes; a single stage first brings up to date the
stages it needs. The last line of the output is one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from service.errors import GtirecError
from training.pipeline import STAGES, StageResult, run_stages, stages_up_to
from training.recipe import Recipe, load_recipe
from training.report import print_result

# Read when torch loads, which no import above does. A second process on the same cores makes threads
# that spin at barriers thirty times slower (measured: a step of 0.2 s took 6 s); sleeping costs nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Make a semantic-ID recommendation model: items, semantic IDs, grounding, fine-tuning, bundle.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Option("--config", "-c", help="recipe: a TOML file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="change one setting, e.g. finetuning.epochs=3"),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="where runs are kept")]
Force = Annotated[
    list[str] | None, typer.Option("--force", metavar="STAGE", help="run this stage again although done")
]


def _command(name: str) -> Callable[..., None]:
    """The function behind `python -m training <name>`."""

    def command(
        config: Config,
        overrides: Overrides = None,
        runs_dir: RunsDir = Path("runs"),
        force: Force = None,
    ) -> None:
        recipe = load_recipe(config, overrides or [])
        stages = stages_up_to(name)

        def run(announce: Callable[[str], object] = lambda name: None) -> None:
            began = time.perf_counter()
            results = []
            for result in run_stages(recipe, runs_dir, stages, force=force or [], announce=announce):
                print_result(result, position=len(results) + 1, total=len(stages))
                results.append(result)
            line = last_line(recipe, runs_dir / recipe.name, results, time.perf_counter() - began)
            print(json.dumps(line), flush=True)

        if "TORCHELASTIC_RUN_ID" not in os.environ:
            run()
            return
        from training.several import run_together  # torch, which a skipped run does without

        run_together(run, recipe, runs_dir)

    return command


def last_line(recipe: Recipe, run_dir: Path, results: list[StageResult], seconds: float) -> dict[str, Any]:
    """The JSON object that ends the output."""
    return {
        "recipe": recipe.name,
        "run_dir": str(run_dir),
        "minutes_now": round(seconds / 60, 2),
        "minutes": round(sum(result.minutes for result in results), 2),
        "stages": {
            result.stage.name: {
                "minutes": result.minutes,
                "skipped": result.is_skipped,
                **result.summary,
            }
            for result in results
        },
    }


app.command("all", help="every stage, in order")(_command("all"))
for _stage in STAGES:
    app.command(_stage.name, help=f"the stage {_stage.name}, after what it needs")(_command(_stage.name))


@app.command("compare", help="a grid of runs, arms x base models x seeds: table, paired tests, pictures")
def _compare(
    config: Annotated[Path, typer.Option("--config", "-c", help="grid: a TOML file that names a recipe")],
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    from training.compare.command import compare  # matplotlib and polars; other commands do without

    print(json.dumps(compare(config, runs_dir, overrides or [])), flush=True)


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    try:
        app()
    except Exception as error:
        if not is_users_mistake(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        raise SystemExit(130) from None


def is_users_mistake(error: BaseException) -> bool:
    """True for errors that are written for the user.

    That is the project's own error tree, and a ValueError that one of our own files raised on
    purpose; a ValueError from inside a library is a bug of ours and keeps its traceback.
    """
    if isinstance(error, GtirecError):
        return True
    if not isinstance(error, ValueError):
        return False
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = (Path(__file__).parent, Path(__file__).parents[1] / "service")
    is_ours = any(Path(innermost).is_relative_to(folder) for folder in ours)
    return is_ours and type(error) is ValueError


if __name__ == "__main__":
    main()
