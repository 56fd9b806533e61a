"""Run a grid and write what came of it.

    python -m training compare --config training/recipes/arms.toml

Writes results.json, report.md and the pictures to the grid's folder after every finished arm, so
that a killed grid has told what it knew; the same command goes on where it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from training.compare.config import load_grid
from training.compare.grid import make_cells, work_through
from training.compare.pictures import draw_all
from training.compare.report import markdown
from training.compare.results import gather


def compare(config: Path, runs_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """Bring every run of the grid up to date.

    Args:
        config: the grid's TOML file.
        runs_dir: the grid's folder is `runs_dir/<grid name>`.
        overrides: `--set` settings for all runs.

    Returns:
        What the last line of the output says.
    """
    grid = load_grid(config)
    cells = make_cells(grid, runs_dir, overrides)
    folder = runs_dir / grid.name
    results: dict[str, Any] = {}
    num_runs = sum(len(runs) for cell in cells for runs in cell.runs.values())
    for number, cell in enumerate(work_through(cells), start=1):
        outcome = f"cannot run: {cell.unavailable}" if cell.unavailable else "done"
        print(f"[{number}/{len(cells)}] arm {cell.arm}, base model {cell.base_model}: {outcome}", flush=True)
        results = gather(grid, cells)
        write(folder, results)
        draw_all(folder, cells, results)
    Console().print(Markdown(markdown(results)))
    return {
        "grid": grid.name,
        "folder": str(folder),
        "arms": len(grid.arms),
        "runs": num_runs,
        "unavailable": len(results["unavailable"]),
        "minutes": round(sum(record["minutes"] for record in results["runs"]), 2),
    }


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json and report.md, each whole or not at all."""
    texts = {"results.json": json.dumps(results, indent=1) + "\n", "report.md": markdown(results)}
    for name, text in texts.items():
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
