"""Decode side by side: our engines, Hugging Face's and vLLM's own beam search, and the floor.

    python benchmarks/decode.py --quick      # the ratios that are our goals; minutes on two cores
    python benchmarks/decode.py              # 2 models, 2 dtypes, 4 widths; hours
    python benchmarks/decode.py --models 6m --dtypes bfloat16 --widths 50 --engines torch,vllm_pooling

Every engine runs in a process of its own and they take turns on the same prompts, which none has
seen before; what else the machine does hits all alike. vLLM runs in-process in each (no client, no
second process), so that its engines differ by how they decode alone. `floor` is the bare forward
passes that an exact beam search cannot leave out; `trie` is what the search costs beside the model
in a real decode.
`agreement` compares the ten best with those of the exhaustive ranking of all items, which beam
search only approaches on a random model; `same_beams` compares all beams with the torch engine's.

The last line is one JSON object: {"bench": "decode", "rows": [...], "ratios": {...}}.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUICK_TURNS, TURNS = 7, 9
SERIAL = ("hf_generate", "vllm_beam")  # too slow for 8 requests at once in --quick
ALL_ENGINES = (
    "torch",
    "vllm_pooling",
    "vllm_pooling+1% filter",
    "trie",
    "trie+1% filter",
    "floor",
    "vllm_logits",
    "vllm_beam",
    "hf_generate",
)


def main() -> None:
    options = _options()
    _prepare_environment()
    from decode_bench.material import make_bundle
    from decode_bench.measure import measure
    from decode_bench.report import ratios_of, rows_of, show

    groups = _groups(options)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        series, first_seed = [], 1000
        bundles = {}
        for group in groups:
            if group.model not in bundles:
                bundles[group.model], _ = make_bundle(group.model, Path(directory), options.items)
            # The exhaustive ranking of 20,000 items by 100 M parameters takes minutes a prompt.
            num_true = 0 if options.quick and group.model == "100m" else options.truths
            truth = _truth(bundles[group.model], num_true)
            series += measure(
                group, bundles[group.model], turns=options.turns, truth=truth, first_seed=first_seed
            )
            first_seed += 10_000
        rows = rows_of(series, _membership(next(iter(bundles.values()))))
    ratios = ratios_of(rows)
    machine = _machine()
    show(rows, ratios, machine)
    seconds = round(time.monotonic() - start)
    print(
        json.dumps(
            {"bench": "decode", "machine": machine, "seconds": seconds, "rows": rows, "ratios": ratios}
        )
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="6m at widths 50 and 128, 100m at 50, float32")
    parser.add_argument("--models", default="6m,100m")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--widths", default="10,50,128,256")
    parser.add_argument("--concurrencies", default="1,8")
    parser.add_argument("--engines", default=",".join(ALL_ENGINES))
    parser.add_argument("--turns", type=int, help="timed turns per engine and point")
    parser.add_argument("--items", type=int, default=20_000, help="catalogue size")
    parser.add_argument("--truths", type=int, default=2, help="prompts ranked exhaustively per model")
    options = parser.parse_args()
    options.turns = options.turns or (QUICK_TURNS if options.quick else TURNS)
    return options


def _groups(options: argparse.Namespace) -> list:
    from decode_bench.measure import Group

    if options.quick:
        near_floor = ("torch", "vllm_pooling", "floor")
        return [
            Group("6m", "float32", ALL_ENGINES, ((50, 1), (128, 1), (50, 8)), alone=SERIAL),
            Group("100m", "float32", near_floor, ((50, 1),)),
        ]
    widths = tuple(int(width) for width in options.widths.split(","))
    concurrencies = tuple(int(number) for number in options.concurrencies.split(","))
    engines = tuple(options.engines.split(","))
    return [
        Group(model, dtype, engines, tuple(itertools.product(widths, concurrencies)))
        for model in options.models.split(",")
        for dtype in options.dtypes.split(",")
    ]


def _prepare_environment() -> None:
    """As the engines of the service do, for every process alike; what the user set stays."""
    from service.engine.vllm_version import prepare_environment

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    prepare_environment()


def _truth(bundle_dir: Path, num_prompts: int) -> dict[int, list[tuple[int, ...]]]:
    if not num_prompts:
        return {}
    from decode_bench.material import fresh_prompts
    from decode_bench.truth import ExhaustiveRanking

    ranking = ExhaustiveRanking(bundle_dir)
    return {seed: ranking.best(fresh_prompts(1, seed)[0], 10) for seed in range(num_prompts)}


def _membership(bundle_dir: Path):
    """Whether SIDs are in the catalogue, which is the same for all models."""
    import numpy as np

    from service.bundle import load_bundle

    codes = np.asarray(load_bundle(bundle_dir).semantic_ids, dtype=np.int64)
    places = 256 ** np.arange(codes.shape[1])[::-1]
    known = np.unique(codes @ places)

    def is_item(sids: np.ndarray) -> np.ndarray:
        inside = ((sids >= 0) & (sids < 256)).all(1)
        return inside & np.isin(sids @ places, known)

    return is_item


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [line for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    load = f"load {os.getloadavg()[0]:.1f}"
    return f"{os.cpu_count()} x {model}, {load}, {time.strftime('%Y-%m-%d')}, {git.stdout.strip()}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
