"""The torch engine on a GPU: Qwen3-1.7B's shape, 3 x 8,192 SIDs, 1.5 M items, constraint on.

    python benchmarks/gpu.py             # on CUDA: prompts of 1,000 and 5,000, then throughput at 2,465
    python benchmarks/gpu.py --smoke     # tiny shapes on any machine, to see that the script runs

Needs torch (2.11 or 2.13), numpy, polars, pydantic and rich; no transformers, no vLLM, no model: the
weights are random, which changes nothing about speed. `concurrency` prompts are decoded as one batch
and the next batch follows at once. `published` quotes other systems on other hardware, to compare
orders of magnitude: NVIDIA sid-gr-inference on an H100, constraint off (ms), and FlashRec on an
RTX 5090 in FP8 (requests per second).

The last line is one JSON object: {"bench": "gpu", "rows": [...]}.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from decode_bench.random_qwen3 import Config, Qwen3ForCausalLM

from service.bundle import Level
from service.decoding.trie import Trie
from service.engine.recorded_decode import record_nothing
from service.engine.torch_engine import TorchDecoder


@dataclass(frozen=True)
class Scale:
    """What is measured.

    Attributes:
        config: the model; its last rows of the vocabulary are the SID tokens.
        sizes: codebooks.
        num_items: catalogue.
        points: (prompt tokens, width, concurrency, what others published).
        dtype: of the weights.
        turns: timed turns per point.
    """

    config: Config
    sizes: tuple[int, ...]
    num_items: int
    points: tuple[tuple[int, int, int, str], ...]
    dtype: torch.dtype
    turns: int


OFFLINE = ((1000, 256, 1, "17.6 ms"), (1000, 256, 8, "93.2 ms"))
OFFLINE += ((5000, 256, 1, "42.3 ms"), (5000, 256, 8, "307.9 ms"))
FLASHREC = {50: (15.1, 26.5, 28.1), 128: (12.2, 19.2, 19.9), 512: (7.1, 8.1, 8.2)}
ONLINE = tuple(
    (2465, width, concurrency, f"{rate} /s")
    for width, rates in FLASHREC.items()
    for concurrency, rate in zip((1, 8, 32), rates, strict=True)
)
FULL = Scale(
    Config(151_936 + 3 * 8192, 2048, 6144, 28, 16, 8, 128),
    (8192,) * 3,
    1_500_000,
    OFFLINE + ONLINE,
    torch.bfloat16,
    turns=9,
)
SMOKE = Scale(
    Config(200 + 3 * 32, 64, 96, 2, 4, 2, 16),
    (32,) * 3,
    500,
    ((40, 8, 1, ""), (40, 8, 3, ""), (7, 600, 2, "")),
    torch.float32,
    turns=2,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on the CPU if there is no GPU")
    options = parser.parse_args()
    scale = SMOKE if options.smoke else FULL
    if not torch.cuda.is_available() and not options.smoke:
        parser.error("no CUDA device was found; --smoke runs tiny shapes on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(scale.config, scale.dtype, device)
    first = scale.config.vocab_size - sum(scale.sizes)
    starts = first + np.cumsum([0, *scale.sizes[:-1]])
    levels = [
        Level(letter="abc"[n], codebook_size=size, first_token_id=int(start))
        for n, (size, start) in enumerate(zip(scale.sizes, starts, strict=True))
    ]
    codes = _random_sids(scale.num_items, scale.sizes)
    decoder = TorchDecoder(model, Trie.build(codes, scale.sizes), levels)
    if device.type == "cpu":
        decoder.record(record_nothing)  # as on CUDA, searches of fixed shapes, only without the graph
    rows = [_measure(decoder, codes, first, scale.turns, *point) for point in scale.points]
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    table = Table(title=f"{name}, torch {torch.__version__}, {scale.dtype}, {scale.num_items:,} items")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=140).print(table)
    print(
        json.dumps(
            {"bench": "gpu", "device": name, "torch": torch.__version__, "smoke": options.smoke, "rows": rows}
        )
    )


def _random_sids(num_items: int, sizes: tuple[int, ...]) -> np.ndarray:
    """Distinct sorted SIDs. Shape: (N, L), int64."""
    rng = np.random.default_rng(0)
    packed = np.unique(rng.integers(0, np.prod(sizes), int(1.2 * num_items)))
    packed = np.sort(rng.permutation(packed)[:num_items])
    return np.stack(np.unravel_index(packed, sizes), axis=1)


def _measure(
    decoder: TorchDecoder,
    codes: np.ndarray,
    num_text: int,
    turns: int,
    num_tokens: int,
    width: int,
    concurrency: int,
    published: str,
) -> dict:
    """One point: median time of a batch of prompts never seen before, and whether answers are items."""
    rng = np.random.default_rng((num_tokens, width, concurrency))
    known = {tuple(sid) for sid in codes.tolist()}
    times, num_answers, num_invalid = [], 0, 0
    for turn in range(turns + 2):  # the first two record graphs and pick kernels
        prompts = rng.integers(0, num_text, (concurrency, num_tokens)).tolist()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        found = decoder.decode(prompts, [width] * concurrency)
        if turn >= 2:
            times.append((time.perf_counter() - start) * 1000)
        for beams in found:
            num_answers += len(beams.codes)
            num_invalid += sum(tuple(sid) not in known for sid in beams.codes.tolist())
    median = statistics.median(times)
    return {
        "prompt_tokens": num_tokens,
        "width": width,
        "concurrency": concurrency,
        "median_ms": round(median, 2),
        "requests_per_s": round(1000 * concurrency / median, 2),
        "answers": num_answers,
        "invalid": num_invalid,
        "published": published,
        "gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if torch.cuda.is_available() else None,
    }


if __name__ == "__main__":
    main()
