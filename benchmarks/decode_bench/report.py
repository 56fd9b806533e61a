"""Series -> rows, ratios, a table and the last line."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from decode_bench.measure import FILTERED, Series

Row = dict[str, Any]
GOALS = {
    "vs_hf_w50": ">= 25",
    "vs_vllm_beam_w128": ">= 15",
    "rps_vs_logits_w50": ">= 5",
    "vs_floor_100m": "<= 1.25",
    "trie_share": "<= 0.03",
    "filter_cost_w50": "<= 1.3",
}


def rows_of(series: Sequence[Series], is_item: Callable[[np.ndarray], np.ndarray]) -> list[Row]:
    """One row per series.

    Args:
        series: what was measured.
        is_item: whether SIDs are in the catalogue. Shapes: (B, L) -> (B,), bool.
    """
    rows = []
    for one in series:
        median = statistics.median(one.times_ms)
        valid = np.concatenate([is_item(answer) for answer in one.answers]) if one.answers else None
        rows.append(
            {
                "engine": one.engine,
                "model": one.model,
                "dtype": one.dtype,
                "width": one.width,
                "concurrency": one.concurrency,
                "median_ms": round(median, 3),
                "requests_per_s": round(1000 * one.concurrency / median, 2),
                "valid": None if valid is None else round(float(valid.mean()), 4),
                "agreement": None if one.agreement is None else round(one.agreement, 3),
                "answers": 0 if valid is None else len(valid),
                "invalid": None if valid is None else int((~valid).sum()),
                "same_beams": round(float(np.mean(one.same)), 4) if one.same else None,
                "turns": len(one.times_ms),
                "min_ms": round(min(one.times_ms), 3),
            }
        )
    return rows


def ratios_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """The issue's ratios; None where a side was not measured."""

    def value(engine: str, width: int, *, column: str = "median_ms", **where: Any) -> float | None:
        wanted = {"engine": engine, "width": width, "model": "6m", "dtype": "float32", "concurrency": 1}
        wanted |= where
        for row in rows:
            if all(row[key] == expected for key, expected in wanted.items()):
                return row[column]
        return None

    def ratio(above: float | None, below: float | None) -> float | None:
        return None if above is None or not below else round(above / below, 4)

    ours = "vllm_pooling"
    widths = sorted({row["width"] for row in rows})
    shares = [ratio(value(f"trie{FILTERED}", w), value(f"{ours}{FILTERED}", w)) for w in widths]
    shares += [ratio(value("trie", w), value(ours, w)) for w in widths]
    rate = {"column": "requests_per_s", "concurrency": 8}
    return {
        "vs_hf_w50": ratio(value("hf_generate", 50), value(ours, 50)),
        "vs_vllm_beam_w128": ratio(value("vllm_beam", 128), value(ours, 128)),
        "rps_vs_logits_w50": ratio(value(ours, 50, **rate), value("vllm_logits", 50, **rate)),
        "vs_floor_100m": ratio(value(ours, 50, model="100m"), value("floor", 50, model="100m")),
        "trie_share": max((share for share in shares if share is not None), default=None),
        "filter_cost_w50": ratio(value(f"{ours}{FILTERED}", 50), value(ours, 50)),
    }


def show(rows: Sequence[Row], ratios: dict[str, float | None], machine: str) -> None:
    """Print the table and the ratios beside their goals."""
    console = Console(width=140)
    table = Table(title=f"Decode: medians, {machine}")
    columns = ("model", "dtype", "width", "concurrency", "engine", "median_ms", "min_ms", "requests_per_s")
    columns += ("valid", "invalid", "answers", "same_beams", "agreement", "turns")
    for column in columns:
        table.add_column(column, justify="left" if column == "engine" else "right")
    before = None
    for row in sorted(rows, key=lambda r: (r["model"], r["dtype"], r["width"], r["concurrency"])):
        here = (row["model"], row["dtype"], row["width"], row["concurrency"])
        if before not in (None, here):
            table.add_section()
        before = here
        table.add_row(*("-" if row[c] is None else str(row[c]) for c in columns))
    console.print(table)
    for name, goal in GOALS.items():
        console.print(f"{name:20} {ratios[name]!s:>8}   goal {goal}")
