"""Lets the engines take turns on the same prompts, and keeps what they took and answered."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from decode_bench.material import ONE_PERCENT, fresh_prompts
from decode_bench.worker import EngineProcess

FILTERED = "+1% filter"  # behind an engine's name: the same request, through a filter
ENOUGH_S = 12.0  # an engine that has used this long at one point gets no more than two turns there


@dataclass(frozen=True)
class Group:
    """Engines that are compared with each other: same model, dtype, widths and prompts.

    Attributes:
        model: a key of `SHAPES`.
        dtype: torch dtype name.
        engines: names of `ENGINES`, those with `FILTERED` behind share a process with the plain one.
        points: (beam width, requests decoded together).
        alone: engines that are left out where several requests are decoded together.
    """

    model: str
    dtype: str
    engines: tuple[str, ...]
    points: tuple[tuple[int, int], ...]
    alone: tuple[str, ...] = ()


@dataclass
class Series:
    """One engine at one point.

    Attributes:
        times_ms: of each turn.
        answers: SIDs per prompt, over all turns. Shapes: (B, L).
        agreement: share of the exhaustive ranking's ten best that are among the engine's ten best.
        same: share of the reference's beams among the engine's, by prompt.
    """

    engine: str
    model: str
    dtype: str
    width: int
    concurrency: int
    times_ms: list[float] = field(default_factory=list)
    answers: list[np.ndarray] = field(default_factory=list)
    agreement: float | None = None
    same: list[float] = field(default_factory=list)


def measure(
    group: Group, bundle_dir: Path, *, turns: int, truth: dict[int, list[tuple[int, ...]]], first_seed: int
) -> list[Series]:
    """Run a group.

    Args:
        group: what to compare.
        bundle_dir: the model's bundle.
        turns: timed turns per engine and point; one more comes first, untimed.
        truth: seed of a prompt -> its ten best SIDs by exhaustive ranking.
        first_seed: of the prompts; a prompt is never used twice.

    Returns:
        One series per engine and point.
    """
    names = dict.fromkeys(name.removesuffix(FILTERED) for name in group.engines)
    widest = max(width for width, _ in group.points)
    processes = {name: EngineProcess(name, bundle_dir, group.dtype, widest) for name in names}
    series = []
    try:
        for process in processes.values():
            process.wait_until_ready()
            _say(f"{group.model} {group.dtype}: {process.name} is ready")
        for width, concurrency in group.points:
            engines = [e for e in group.engines if concurrency == 1 or e not in group.alone]
            point = [Series(e, group.model, group.dtype, width, concurrency) for e in engines]
            for turn in range(turns + 1):
                _take_turns(point, processes, fresh_prompts(concurrency, first_seed), is_timed=turn > 0)
                first_seed += 1
            if concurrency == 1:
                _agree(point, processes, truth)
            series += point
            medians = ", ".join(f"{one.engine} {statistics.median(one.times_ms):.1f}" for one in point)
            _say(f"{group.model} {group.dtype}: width {width}, {concurrency} at once, ms: {medians}")
    finally:
        for process in processes.values():
            process.close()
    return series


def _take_turns(
    point: Sequence[Series],
    processes: dict[str, EngineProcess],
    prompts: list[list[int]],
    *,
    is_timed: bool,
) -> None:
    reference: list[np.ndarray] | None = None
    for series in point:
        if sum(series.times_ms) > 1000 * ENOUGH_S and len(series.times_ms) >= 2:
            continue
        name, only = _what(series)
        milliseconds, answers = processes[name].run(prompts, series.width, only)
        if is_timed:
            series.times_ms.append(milliseconds)
        series.answers += answers
        if name == "torch" and only is None:
            reference = answers
        elif answers and reference is not None and only is None:
            series.same += [_overlap(a, b) for a, b in zip(answers, reference, strict=True)]


def _agree(
    point: Sequence[Series], processes: dict[str, EngineProcess], truth: dict[int, list[tuple[int, ...]]]
) -> None:
    for series in point:
        name, only = _what(series)
        if only is not None or name in ("floor", "trie"):
            continue
        found = []
        for seed, best in truth.items():
            _, answers = processes[name].run(fresh_prompts(1, seed), series.width)
            mine = {tuple(sid) for sid in answers[0][: len(best)].tolist()}
            found.append(len(mine & set(best)) / len(best))
        series.agreement = float(np.mean(found)) if found else None


def _what(series: Series) -> tuple[str, dict[str, Any] | None]:
    is_filtered = series.engine.endswith(FILTERED)
    return series.engine.removesuffix(FILTERED), ONE_PERCENT if is_filtered else None


def _overlap(found: np.ndarray, reference: np.ndarray) -> float:
    wanted = {tuple(sid) for sid in reference.tolist()}
    return len(wanted & {tuple(sid) for sid in found.tolist()}) / len(wanted)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
