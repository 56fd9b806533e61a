"""Build and step the trie: seconds to build, bytes per item, microseconds per beam step.

    python benchmarks/trie.py            # 10 k, 1 M and 10 M items; about a minute
    python benchmarks/trie.py --quick    # up to 1 M

`step_us` is one step of one request at the last level, where every catalogue size has nodes with
exactly one child: at this equal fan-out only the number of items differs. `wide_step_us` is the same
at level 1, where nodes have many children, and `ns_per_child` divides it by the children scored. Times
are CPU times of one thread, so that other work on the machine counts little. The sizes take turns.

Beside both runs STATIC's step in PyTorch (arXiv:2602.22647: packed CSR rows of (token, next state), a
fixed number of entries read per beam, scores scattered over the vocabulary), written here from the
paper on the same arrays: its package is not on PyPI (looked up on 2026-11-25).

The last line is one JSON object: {"bench": "trie", "rows": [...], "equal_fan_out_ratio": {...}}.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from service.decoding.beam_search import BeamState
from service.decoding.trie import Trie

SHAPES = ((256,) * 4, (8192,) * 3)
WIDE_LEVEL = 1


def random_sids(num_items: int, sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Sorted SIDs, uniform codes. Shape: (N, L), int32."""
    rng = np.random.default_rng(seed)
    packed = np.zeros(num_items, dtype=np.int64)
    for size in sizes:
        packed = packed * size + rng.integers(0, size, num_items)
    packed.sort()
    columns = []
    for size in reversed(sizes):
        columns.append((packed % size).astype(np.int32))
        packed //= size
    return np.stack(columns[::-1], axis=1)


def beams_at(trie: Trie, level: int, width: int, fan_out: int | None) -> torch.Tensor:
    """Random nodes at a depth.

    Args:
        trie: where to look.
        level: depth of the nodes.
        width: how many; a node may come more than once.
        fan_out: children each must have; None for any.

    Returns:
        Shape: (1, width), int64.
    """
    counts = trie.child_start[level].diff()
    nodes = torch.nonzero(counts == fan_out if fan_out is not None else counts > 0).flatten()
    generator = torch.Generator().manual_seed(1)
    return nodes[torch.randint(len(nodes), (width,), generator=generator)][None]


def step_of(trie: Trie, level: int, nodes: torch.Tensor) -> Callable[[], None]:
    """One beam step of one request from the given nodes."""
    width = nodes.shape[1]
    logprobs = torch.randn(1, width, trie.codebook_sizes[level]).log_softmax(-1)
    scores = torch.randn(1, width).sort(descending=True).values
    trail = torch.zeros(1, width, level, dtype=torch.long)

    def step() -> None:
        state = BeamState(trie, [width])
        state.level, state.nodes, state.logprobs, state._trail = level, nodes, scores, trail
        state.step(logprobs)

    return step


def static_step_of(trie: Trie, level: int, nodes: torch.Tensor) -> Callable[[], None]:
    """The same step in STATIC's form: packed pairs, a fixed row length, a mask over all codes."""
    width, size = nodes.shape[1], trie.codebook_sizes[level]
    codes = trie.child_code[level].long()
    longest = trie.max_children[level]
    packed = torch.stack([codes, torch.arange(len(codes))], dim=1)
    packed = torch.cat([packed, packed.new_zeros(longest, 2)])
    starts = trie.child_start[level].long()
    given = torch.randn(width, size).log_softmax(-1)
    scores = torch.randn(width)

    def step() -> None:
        offsets = torch.arange(longest)
        first = starts[nodes[0]]
        alive = offsets < (starts[nodes[0] + 1] - first)[:, None]
        entries = packed[first[:, None] + offsets]
        masked = torch.full_like(given, float("-inf"))
        masked.scatter_(1, torch.where(alive, entries[..., 0], entries[:, :1, 0]), 0.0)
        total = (masked + given + scores[:, None]).flatten()
        _, choice = total.topk(width)
        beam, code = choice // size, choice % size
        hit = entries[beam, :, 0] == code[:, None]
        torch.where(hit, entries[beam, :, 1], 0).amax(1)

    return step


def medians_us(steps: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Median CPU time of each step, in microseconds; they take turns."""
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(repeats + 3):
        for step, mine in zip(steps, times, strict=True):
            start = time.thread_time()
            step()
            if turn >= 3:
                mine.append((time.thread_time() - start) * 1e6)
    return [statistics.median(mine) for mine in times]


def measure_shape(sizes: tuple[int, ...], catalogues: Sequence[int], width: int, repeats: int) -> list[dict]:
    """Rows of one SID shape, one per catalogue size."""
    rows, steps = [], []
    for num_items in catalogues:
        codes = random_sids(num_items, sizes)
        start = time.perf_counter()
        trie = Trie.build(codes, sizes)
        build_s = time.perf_counter() - start
        last = len(sizes) - 1
        narrow, wide = beams_at(trie, last, width, 1), beams_at(trie, WIDE_LEVEL, width, None)
        for level, nodes in ((last, narrow), (WIDE_LEVEL, wide)):
            steps += [step_of(trie, level, nodes), static_step_of(trie, level, nodes)]
        starts = trie.child_start[WIDE_LEVEL]
        rows.append(
            {
                "items": num_items,
                "levels": len(sizes),
                "codebook": sizes[0],
                "build_s": round(build_s, 3),
                "bytes_per_item": round(trie.num_bytes / num_items, 2),
                "children": int((starts[wide + 1] - starts[wide]).sum()),
            }
        )
    medians = iter(medians_us(steps, repeats))
    for row in rows:
        for name in ("step_us", "static_step_us", "wide_step_us", "static_wide_step_us"):
            row[name] = round(next(medians), 1)
        row["ns_per_child"] = round(1000 * row["wide_step_us"] / row["children"], 1)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 1 M items instead of 10 M")
    parser.add_argument("--width", type=int, default=50, help="beams in a step")
    parser.add_argument("--repeats", type=int, default=201, help="timed steps, of which the median counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    catalogues = [10_000, 1_000_000] + ([] if options.quick else [10_000_000])
    rows, ratios = [], {}
    for sizes in SHAPES:
        measured = measure_shape(sizes, catalogues, options.width, options.repeats)
        ratios[f"{len(sizes)}x{sizes[0]}"] = round(measured[-1]["step_us"] / measured[0]["step_us"], 3)
        rows += measured
    table = Table(title=f"Trie, width {options.width}, {platform.processor() or platform.machine()}")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,}" for value in row.values()))
    Console(width=150).print(table)
    print(json.dumps({"bench": "trie", "width": options.width, "rows": rows, "equal_fan_out_ratio": ratios}))


if __name__ == "__main__":
    main()
