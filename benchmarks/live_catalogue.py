"""How fast a change reaches the decode of a large catalogue.

python benchmarks/live_catalogue.py --items 1000000

Makes a catalogue of random semantic IDs with an encoder of random directions, serves it with two replicas
on a private Redis, and measures on the second replica what is written through the first. The engines hold
real tries and attributes and do what the torch engine does to exchange them; there is no model.
Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from service_bench.material import WORDS, levels, write_tokenizer

from service.bundle import Bundle, PromptTemplate, load_bundle, write_bundle
from service.catalogue import Catalogue, Delete, Patch, Put
from service.decoding.search_space import SearchSpace, SearchSpaces
from service.decoding.trie import Trie

SIZES = (256, 256, 256, 256)


class Engine:
    """Holds what an engine's worker holds."""

    def __init__(self, bundle: Bundle) -> None:
        self.spaces = SearchSpaces(SearchSpace.open(bundle.path))
        self.hidden_at = 0.0

    async def load_catalogue(self, directory: Path) -> None:
        space = await asyncio.to_thread(self._open, directory)
        self.spaces.install(space)

    async def hide_rows(self, rows: np.ndarray, trie_version: str) -> None:
        self.spaces.of(trie_version).hide(rows)
        self.hidden_at = time.perf_counter()

    def _open(self, directory: Path) -> SearchSpace:
        space = SearchSpace.open(directory)
        space.check(SIZES)
        return space


def make_bundle(directory: Path, num_items: int) -> Bundle:
    """A bundle without a model."""
    rng = np.random.default_rng(0)
    keys = rng.choice(2**32, num_items, replace=False)
    codes = np.stack([keys >> 24, keys >> 16 & 255, keys >> 8 & 255, keys & 255], axis=1)
    words = rng.integers(0, len(WORDS), (num_items, 4))
    items = pl.DataFrame(
        {
            "item_id": [f"item-{n}" for n in range(num_items)],
            "title": [" ".join(WORDS[word] for word in row) for row in words.tolist()],
            "description": [""] * num_items,
            "metadata": [f'{{"price": {n % 500}, "brand": "brand {n % 97}"}}' for n in range(num_items)],
            "popularity": rng.integers(0, 10_000, num_items),
        }
    )
    model = directory / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 2048}')
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    write_bundle(
        directory / "bundle",
        name="large",
        model_dir=model,
        codes=codes,
        items=items,
        levels=levels(SIZES, first_token_id=8),
        prompt=PromptTemplate(style="sequence", history_limit=20),
        build_trie=Trie.build,
        tokenizer_files=write_tokenizer(directory / "tokenizer", SIZES, rng),
    )
    return load_bundle(directory / "bundle", verify=False)


async def measure(bundle: Bundle, directory: Path, num_changes: int, num_bulk: int) -> dict[str, float]:
    """Write through one replica, watch the other."""
    catalogues = [
        Catalogue(bundle, redis_url=None, data_dir=directory / "data", timeout_s=5) for _ in range(2)
    ]
    engines = [Engine(bundle) for _ in catalogues]
    started = time.perf_counter()
    for catalogue, engine in zip(catalogues, engines, strict=True):
        catalogue.start(engine)
        while catalogue.status.state != "ready":
            await asyncio.sleep(0.05)
    writer, watched = catalogues
    figures = {"load_s": time.perf_counter() - started}
    put_s, ack_s, hidden_s, patch_s = [], [], [], []
    before = writer.version  # of runs on the same files: their items are not touched again
    for number in range(before, before + num_changes):
        started = time.perf_counter()
        await writer.write(
            [Put(f"new-{number}", f"word{number % 2000} word{2 * number % 2000}", "", {"price": 1})]
        )
        ack_s.append(time.perf_counter() - started)
        await until(lambda: watched.snapshot.row_of(f"new-{number}") is not None)  # noqa: B023
        put_s.append(time.perf_counter() - started)

        started = time.perf_counter()
        await writer.write([Delete(f"item-{7 * number}")])
        await until(lambda: engines[1].hidden_at > started)  # noqa: B023
        hidden_s.append(engines[1].hidden_at - started)
        await settled(catalogues)

        started = time.perf_counter()
        await writer.write([Patch(f"item-{7 * number + 1}", {"metadata": {"price": 3}})])
        await settled(catalogues)
        patch_s.append(time.perf_counter() - started)
    figures |= {
        "put_acknowledged_ms": 1000 * statistics.median(ack_s),
        "put_first_in_decode_s": put_s[0],
        "put_in_decode_s": statistics.median(put_s),
        "put_in_decode_max_s": max(put_s),
        "delete_hidden_ms": 1000 * statistics.median(hidden_s),
        "patch_in_decode_s": statistics.median(patch_s),
        "rebuild_s": watched.replica.last_rebuild_s,
    }
    rows = [
        Put(f"bulk-{before}-{n}", f"word{n % 2000} word{n // 2000} word{n * 7 % 2000}")
        for n in range(num_bulk)
    ]
    figures["mib_before_bulk"] = _peak_mib()
    started = time.perf_counter()
    await writer.write(rows)
    figures["bulk_acknowledged_s"] = time.perf_counter() - started
    await settled(catalogues)
    figures["bulk_in_decode_s"] = time.perf_counter() - started
    figures["mib_after_bulk"] = _peak_mib()
    for catalogue in catalogues:
        await catalogue.close()
    return figures


def _peak_mib() -> float:
    """Most memory that this process (both replicas and the rows to be written) has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def settled(catalogues: list[Catalogue]) -> None:
    newest = max(catalogue.version for catalogue in catalogues)
    await until(lambda: all(each.snapshot.version == newest for each in catalogues))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=7)
    parser.add_argument("--bulk", type=int, default=100_000, help="rows of one bulk write")
    parser.add_argument("--keep", type=Path, help="directory for bundle and Redis, used again if it is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = arguments.keep or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / "bundle").is_dir():
            bundle = load_bundle(directory / "bundle", verify=False)
        else:
            bundle = make_bundle(directory, arguments.items)
        figures = asyncio.run(measure(bundle, directory, arguments.changes, arguments.bulk))
    table = Table("figure", "value")
    for figure, value in figures.items():
        table.add_row(figure, f"{value:.3f}")
    Console().print(table)
    rounded = {figure: round(value, 4) for figure, value in figures.items()}
    print(
        json.dumps(
            {"bench": "live_catalogue", "num_items": arguments.items, "num_bulk": arguments.bulk} | rounded
        )
    )


if __name__ == "__main__":
    main()
