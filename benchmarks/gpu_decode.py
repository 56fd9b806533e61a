"""Offline latency and throughput of the torch engine on a GPU, in the settings that others publish.

    python benchmarks/gpu_decode.py                       # one CUDA GPU; minutes
    python benchmarks/gpu_decode.py --shape tiny --device cpu --items 20000   # does it run?

Random weights of Qwen3-1.7B's shape, bfloat16, 3 levels of 8,192 codes, 1.5 M items, the trie ON.
Latency: contexts of 1,000 and 5,000 tokens, beam 256, batches of 1 and 8, prompt pass included
(public figure: NVIDIA sid-gr-inference on an H100 without a constraint, 17.6 / 93.2 ms at batch 1 and
42.3 / 307.9 ms at batch 8). Throughput: prompts of 2,465 tokens, widths 50, 128 and 512, as many
requests in one batch as clients would wait at once (public figure: FlashRec on an RTX 5090 at 1 / 8 / 32
clients, 15.1 / 26.5 / 28.1, 12.2 / 19.2 / 19.9 and 7.1 / 8.1 / 8.2 requests a second). `plain` is the same
decoder without CUDA graphs. Every item returned is checked against the catalogue.

Needs torch and transformers only (torch 2.11 or later, Python 3.11 or 3.12), no vLLM. It has not run
on a GPU yet. The last line is one JSON object: {"bench": "gpu_decode", "rows": [...]}.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM
from trie import random_sids

from service.bundle import Level
from service.decoding.beam_search import Beams
from service.decoding.trie import Trie
from service.engine.recorded_decode import record_cuda_graph, record_nothing
from service.engine.torch_engine import TorchDecoder

NUM_LEVELS, CODEBOOK = 3, 8192
SHAPES = {
    "1.7b": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "num_text_tokens": 151_936,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "num_text_tokens": 1_000,
    },
}  # fmt: skip
PUBLISHED_MS = {(1000, 1): 17.6, (5000, 1): 93.2, (1000, 8): 42.3, (5000, 8): 307.9}
PUBLISHED_PER_S = {50: (15.1, 26.5, 28.1), 128: (12.2, 19.2, 19.9), 512: (7.1, 8.1, 8.2)}
CLIENTS = (1, 8, 32)


def make_decoder(shape: str, device: str, num_items: int) -> tuple[TorchDecoder, np.ndarray]:
    """A random model of a shape, a random catalogue, and its sorted SIDs."""
    values = dict(SHAPES[shape])
    num_text = values.pop("num_text_tokens")
    config = Qwen3Config(
        vocab_size=num_text + NUM_LEVELS * CODEBOOK,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        **values,
    )
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen3ForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    codes = random_sids(num_items, (CODEBOOK,) * NUM_LEVELS)
    levels = [
        Level(letter="abc"[n], codebook_size=CODEBOOK, first_token_id=num_text + n * CODEBOOK)
        for n in range(NUM_LEVELS)
    ]
    return TorchDecoder(model, Trie.build(codes, (CODEBOOK,) * NUM_LEVELS), levels), codes


def measure(decode: Callable[[], list[Beams]], device: str, repeats: int) -> tuple[float, list[Beams]]:
    """Median seconds of a call, after three that warm up (and record)."""
    times, beams = [], []
    for _ in range(repeats + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        beams = decode()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:]), beams


def settings(is_tiny: bool) -> Iterator[tuple[str, int, int, int, float]]:
    """(kind, prompt tokens, width, batch, published figure); a sixteenth of everything if tiny."""
    less = 16 if is_tiny else 1
    for (tokens, batch), published in PUBLISHED_MS.items():
        yield "latency", tokens // less, 256 // less, -(-batch // less), published
    for width, rates in PUBLISHED_PER_S.items():
        for batch, published in zip(CLIENTS, rates, strict=True):
            yield "throughput", 2465 // less, width // less, -(-batch // less), published


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    decoder, codes = make_decoder(options.shape, options.device, options.items)
    rng = np.random.default_rng(1)
    num_text = SHAPES[options.shape]["num_text_tokens"]
    rows = []
    for kind, tokens, width, batch, published in settings(options.shape == "tiny"):
        prompts = rng.integers(0, num_text, (batch, tokens)).tolist()
        row: dict[str, object] = {"kind": kind, "prompt": tokens, "width": width, "batch": batch}
        for name, record in (
            ("graph", record_cuda_graph if options.device == "cuda" else record_nothing),
            ("plain", None),
        ):
            decoder.record(record)
            seconds, beams = measure(
                lambda prompts=prompts, width=width: decoder.decode(prompts, [width] * len(prompts)),
                options.device,
                options.repeats,
            )
            row[f"{name}_ms"] = round(1000 * seconds, 2)
            row[f"{name}_per_s"] = round(batch / seconds, 1)
            row["valid"] = all((codes[one.first_row] == one.codes).all() for one in beams)
        row["published"] = published if options.shape == "1.7b" else None
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1.7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--items", type=int, default=1_500_000)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here; add --device cpu --shape tiny to see whether the script runs")
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    rows = run(options)
    table = Table(
        title=f"torch engine, Qwen3-{options.shape} shape, bfloat16, {name}, torch {torch.__version__}"
    )
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    print(json.dumps({"bench": "gpu_decode", "device": name, "shape": options.shape, "rows": rows}))


if __name__ == "__main__":
    main()
