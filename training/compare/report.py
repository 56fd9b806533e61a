"""A grid's results for people: one table a base model, the paired tests, steps saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LEVEL = 0.05  # a difference is one if its corrected p is below

_COLUMNS = ("HR@1", "HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10")


def markdown(results: Mapping[str, Any]) -> str:
    """The whole report as Markdown."""
    lines = [
        f"# {results['grid']}: arms of grounding, {results['recipe']}",
        "",
        f"Mean over the seeds {results['seeds']} with half the 95 % interval (Student's t) on test rows, "
        "item level; minutes of grounding and fine-tuning by the clock, and of the processor. Validation "
        f"rows chose everything. {results['hardware']}, commit {results['commit'] or 'unknown'}.",
    ]
    for base in dict.fromkeys(row["base_model"] for row in results["summary"]):
        lines += ["", f"## Base model {base}", "", *arm_table(results, base)]
        lines += ["", *test_lines(results["paired"], base)]
    lines += ["", *_left_out(results)]
    return "\n".join(lines) + "\n"


def arm_table(results: Mapping[str, Any], base: str) -> list[str]:
    """One row per arm of a base model."""
    header = ["arm", *_COLUMNS, "valid NDCG@10", "best step", "steps saved", "minutes", "cpu minutes"]
    saved = {
        curve["arm"]: _saved(curve.get("steps_saved", "-"))
        for curve in results["convergence"]
        if curve["base_model"] == base
    }
    rows = [
        [
            row["arm"],
            *(_mean(row["metrics"][name]) for name in _COLUMNS),
            _short(row["valid_NDCG@10"]),
            f"{row['sft_steps']:.0f}",
            saved[row["arm"]],
            f"{row['minutes']:.1f}",
            "-" if row["cpu_minutes"] is None else f"{row['cpu_minutes']:.1f}",
        ]
        for row in results["summary"]
        if row["base_model"] == base
    ]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]


def test_lines(paired: Sequence[Mapping[str, Any]], base: str) -> list[str]:
    """The paired tests of a base model, one line each."""
    lines = []
    for test in paired:
        if test["base_model"] != base:
            continue
        lines.append(
            f"- {test['arm']} minus {test['against']}, {test['metric']}: {test['difference']:+.4f} "
            f"({test['low']:+.4f} to {test['high']:+.4f}), p {test['p']:.4f}, "
            f"corrected {test['p_holm']:.4f}: {verdict(test)}"
        )
    return lines


def verdict(test: Mapping[str, Any]) -> str:
    """What a paired test says, in words; a difference that does not outlast the correction is named so."""
    if test["low"] <= 0 <= test["high"]:
        return "no difference shown"
    word = "better" if test["low"] > 0 else "worse"
    return word if test["p_holm"] < LEVEL else f"{word}, but not after the correction"


def _left_out(results: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {row['arm']} with {row['base_model']} cannot run: {row['reason']}"
        for row in results["unavailable"]
    ]
    lines += [f"- {row['arm']} with {row['base_model']}: not finished" for row in results["unfinished"]]
    return lines


def _saved(steps: float | str | None) -> str:
    """How many steps earlier an arm is where the reference ends; "-" as long as there is no reference."""
    return "never" if steps is None else steps if isinstance(steps, str) else f"{steps:.0f}"


def _mean(value: Mapping[str, Any]) -> str:
    width = value["half_width"]
    return _short(value["mean"]) + ("" if width is None else f" +- {_short(width)}")


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")
