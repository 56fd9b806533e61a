"""A million answers, none of them invalid: every width, filter and exclusion list mixed in one batch.

    python benchmarks/validity.py                                      # 1 M items, 1 M answers
    python benchmarks/validity.py --items 10000000 --answers 100000    # a catalogue of 10 M
    python benchmarks/validity.py --engine torch

Asks an engine (`vllm_pooling` in this process, or `torch`) for batches of requests that differ in
width, filter and excluded items, and checks every answer against the catalogue itself: an answer is
invalid if its SID is not that of its item row, if the item does not pass the filter or is excluded,
or if it came twice; a request is short if it brought less than min(width, allowed SIDs). The model is
tiny and random: what is checked here depends on the trie and the search alone.

The last line is one JSON object: {"bench": "validity", "answers": ..., "invalid": ..., "short": ...}.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

NUM_SHELVES = 100  # material.py: item n stands on shelf n % 100
WIDTHS = (1, 10, 50, 128, 512)
MOST_EXCLUDED = 10_000
BATCH = 8
FILTERS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"shelf": 7},
    {"shelf": {"in": [3, 50, 99]}},
    {"and": [{"shelf": {"gte": 10}}, {"not": {"shelf": {"in": list(range(20, 95))}}}]},
)


@dataclass(frozen=True)
class Asked:
    """One request."""

    width: int
    filter_index: int
    excluded: np.ndarray | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=["vllm_pooling", "torch"], default="vllm_pooling")
    options = parser.parse_args()
    _prepare_environment()
    from decode_bench.material import make_bundle

    with tempfile.TemporaryDirectory() as directory:
        start = time.monotonic()
        bundle_dir, _ = make_bundle("tiny", Path(directory), options.items)
        built_s = time.monotonic() - start
        report = _run(options.engine, bundle_dir, options.answers)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report |= {"items": options.items, "bundle_s": round(built_s, 1), "peak_gib": round(peak_gib, 1)}
    print(json.dumps({"bench": "validity", "engine": options.engine, **report}))
    sys.exit(report["invalid"] + report["short"] > 0)


def _prepare_environment() -> None:
    from service.engine.vllm_version import prepare_environment

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    prepare_environment()


def _run(engine_name: str, bundle_dir: Path, num_answers: int) -> dict[str, Any]:
    from decode_bench.material import fresh_prompts

    from service.bundle import load_bundle
    from service.decoding.search_space import SearchSpace

    bundle = load_bundle(bundle_dir, verify=False)
    codes = np.asarray(bundle.semantic_ids)
    space = SearchSpace.open(bundle_dir)
    filters = [None if one is None else space.compile(one) for one in FILTERS]
    everything = np.ones(len(codes), dtype=bool)
    masks = [everything if name is None else space.rows_of(name) for name in filters]
    decode = _engine(engine_name, bundle_dir)
    counts = {"answers": 0, "requests": 0, "invalid": 0, "short": 0}
    start = time.monotonic()
    with tqdm(total=num_answers, unit=" answers") as bar:
        for seed, batch in enumerate(_batches()):
            answers = decode(fresh_prompts(BATCH, seed), batch, filters)
            for asked, beams in zip(batch, answers, strict=True):
                invalid, short = judge(beams, codes, masks[asked.filter_index], asked)
                counts["answers"] += len(beams.codes)
                counts["invalid"] += invalid
                counts["short"] += short
                bar.update(len(beams.codes))
            counts["requests"] += len(batch)
            if counts["answers"] >= num_answers:
                break
    return {**counts, "seconds": round(time.monotonic() - start)}


def _batches() -> Iterator[list[Asked]]:
    rng = np.random.default_rng(0)
    while True:
        yield [
            Asked(
                width=int(rng.choice(WIDTHS)),
                filter_index=int(rng.integers(len(FILTERS))),
                excluded=_excluded(rng),
            )
            for _ in range(BATCH)
        ]


def _excluded(rng: np.random.Generator) -> np.ndarray | None:
    """Half of the requests exclude rows, up to 10,000 of the first 20,000."""
    if rng.random() < 0.5:
        return None
    return np.unique(rng.integers(0, 2 * MOST_EXCLUDED, rng.integers(1, MOST_EXCLUDED)))


def judge(beams: Any, codes: np.ndarray, allowed: np.ndarray, asked: Asked) -> tuple[int, bool]:
    """What is wrong with one answer.

    Args:
        beams: `Beams`.
        codes: of every item row. Shape: (N, L).
        allowed: whether a row passes the filter. Shape: (N,), bool.
        asked: the request.

    Returns:
        How many of its SIDs are invalid, and whether there are too few.
    """
    if asked.excluded is not None:
        allowed = allowed.copy()
        allowed[asked.excluded] = False
    rows = beams.first_row  # every item of this catalogue has a SID of its own
    is_item = (beams.end_row == rows + 1) & (codes[rows] == beams.codes).all(1)
    is_valid = is_item & allowed[rows]
    is_repeated = np.ones(len(rows), dtype=bool)
    is_repeated[np.unique(rows, return_index=True)[1]] = False
    return int((~is_valid | is_repeated).sum()), len(rows) < min(asked.width, int(allowed.sum()))


def _engine(name: str, bundle_dir: Path) -> Any:
    if name == "torch":
        from decode_bench.torch_engines import load_model

        from service.bundle import load_bundle
        from service.decoding.search_space import SearchSpace
        from service.engine.torch_engine import TorchDecoder

        bundle = load_bundle(bundle_dir, verify=False)
        decoder = TorchDecoder(
            load_model(bundle, "float32"), SearchSpace.open(bundle_dir), bundle.manifest.levels
        )
        return lambda prompts, batch, filters: decoder.decode(
            prompts,
            [asked.width for asked in batch],
            [asked.excluded for asked in batch],
            filters=[filters[asked.filter_index] for asked in batch],
        )
    from decode_bench.vllm_engines import VllmPoolingBench

    engine = VllmPoolingBench(bundle_dir, "float32", max(WIDTHS))
    return lambda prompts, batch, filters: engine.answer(
        prompts, [(asked.width, filters[asked.filter_index], asked.excluded) for asked in batch]
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
