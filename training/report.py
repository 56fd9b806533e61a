"""One table per stage on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from training.pipeline import StageResult


def print_result(result: StageResult, *, position: int, total: int, console: Console | None = None) -> None:
    """Print what a stage read, what came out, and how long it took."""
    console = console or Console()
    title = f"[{position}/{total}] {result.stage.name}"
    if result.is_skipped:
        console.print(f"{title}: done before ({result.minutes:.2f} min), skipped", markup=False)
        return
    table = Table(title=title.replace("[", r"\["), title_justify="left", show_header=False, min_width=48)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_row("input", ", ".join((*result.stage.sections, *result.stage.needs)))
    for name, value in result.summary.items():
        if not isinstance(value, dict | list):
            table.add_row(str(name), _shown(value))
    table.add_row("minutes", f"{result.minutes:.2f}")
    console.print(table)


def _shown(value: Any) -> str:
    """A number for people."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
