"""Build and step the trie: seconds to build, bytes per item, microseconds per beam step.

    python benchmarks/trie.py [--quick] [--width 50]

The beam step is timed at equal fan-out for every catalogue size, so that only the number of items
differs: the beams sit on nodes that have exactly one child, and the step costs the same whatever
lies elsewhere in the trie. `step_us` is one step of one request at level 2 (the third code), on
random log-probabilities; `ns_per_child` divides it by the children that were scored.

A STATIC-like step (arXiv:2602.22647: packed CSR rows of (token, next state), a fixed number of
entries read per beam, sparse mask over the full vocabulary) runs beside it on the same arrays,
written here from the paper because its package is not on PyPI.

The last line is one JSON object: {"bench": "trie", "rows": [...]}.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from service.decoding.beam_search import BeamState
from service.decoding.trie import Trie

SHAPES = ((256,) * 4, (8192,) * 3)
BEAM_LEVEL = 2


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


def median_us(call, repeats: int) -> float:
    """Median duration of a call, in microseconds."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times[3:])


def beams_at_equal_fan_out(trie: Trie, width: int, fan_out: int) -> tuple[torch.Tensor, int]:
    """Nodes at depth BEAM_LEVEL with `fan_out` children (or the nearest that exists).

    Returns:
        Nodes, shape (1, width), and their fan-out.
    """
    counts = trie.child_start[BEAM_LEVEL].diff()
    nearest = int(counts[(counts - fan_out).abs().argmin()])
    nodes = torch.nonzero(counts == nearest).flatten()
    chosen = nodes[torch.randint(len(nodes), (width,), generator=torch.Generator().manual_seed(1))]
    return chosen[None], nearest


def step_us(trie: Trie, nodes: torch.Tensor, repeats: int) -> float:
    """One beam step of one request from the given nodes."""
    width = nodes.shape[1]
    logprobs = torch.randn(1, width, trie.codebook_sizes[BEAM_LEVEL]).log_softmax(-1)
    scores = torch.randn(1, width).sort(descending=True).values
    trail = torch.zeros(1, width, BEAM_LEVEL, dtype=torch.long)

    def step() -> None:
        state = BeamState(trie, [width])
        state.level, state.nodes, state.logprobs, state._trail = BEAM_LEVEL, nodes, scores, trail
        state.step(logprobs)

    return median_us(step, repeats)


def static_step_us(trie: Trie, nodes: torch.Tensor, repeats: int) -> float:
    """The same step in STATIC's form: packed pairs, a fixed row length, a mask over all codes."""
    width, size = nodes.shape[1], trie.codebook_sizes[BEAM_LEVEL]
    codes = trie.child_code[BEAM_LEVEL].long()
    packed = torch.stack([codes, torch.arange(len(codes))], dim=1)
    starts = trie.child_start[BEAM_LEVEL].long()
    longest = trie.max_children[BEAM_LEVEL]
    packed = torch.cat([packed, packed.new_zeros(longest, 2)])
    logits = torch.randn(width, size)
    scores = torch.randn(width)

    def step() -> None:
        logprobs = logits.log_softmax(-1)
        offsets = torch.arange(longest)
        first = starts[nodes[0]]
        alive = offsets < (starts[nodes[0] + 1] - first)[:, None]
        entries = packed[first[:, None] + offsets]
        masked = torch.full_like(logprobs, float("-inf"))
        masked.scatter_(1, torch.where(alive, entries[..., 0], entries[:, :1, 0]), 0.0)
        total = (masked + logprobs + scores[:, None]).flatten()
        _, choice = total.topk(width)
        beam, code = choice // size, choice % size
        hit = entries[beam, :, 0] == code[:, None]
        torch.where(hit, entries[beam, :, 1], 0).amax(1)

    return median_us(step, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 1 M items instead of 10 M")
    parser.add_argument("--width", type=int, default=50, help="beams in a step")
    parser.add_argument("--repeats", type=int, default=201, help="timed steps, of which the median counts")
    options = parser.parse_args()
    sizes_of_catalogue = [10_000, 100_000, 1_000_000] + ([] if options.quick else [10_000_000])
    rows = []
    for sizes in SHAPES:
        for num_items in sizes_of_catalogue:
            codes = random_sids(num_items, sizes)
            start = time.perf_counter()
            trie = Trie.build(codes, sizes)
            build_s = time.perf_counter() - start
            nodes, fan_out = beams_at_equal_fan_out(trie, options.width, 1)
            duration = step_us(trie, nodes, options.repeats)
            rows.append(
                {
                    "items": num_items,
                    "levels": len(sizes),
                    "codebook": sizes[0],
                    "build_s": round(build_s, 3),
                    "bytes_per_item": round(trie.num_bytes / num_items, 2),
                    "fan_out": fan_out,
                    "step_us": round(duration, 1),
                    "static_step_us": round(static_step_us(trie, nodes, options.repeats), 1),
                    "ns_per_child": round(1000 * duration / (options.width * fan_out), 1),
                }
            )
    table = Table(title=f"Trie, width {options.width}, {platform.processor() or platform.machine()}")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:,}" for value in row.values()))
    Console().print(table)
    print(json.dumps({"bench": "trie", "width": options.width, "rows": rows}))


if __name__ == "__main__":
    main()
