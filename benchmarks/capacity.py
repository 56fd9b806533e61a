"""From what one request and one item cost to the machines that a load needs.

    python benchmarks/capacity.py                                the table, from benchmarks/capacity.json
    python benchmarks/capacity.py --measure runs/demo/bundle     measured anew on this machine
    python benchmarks/capacity.py --requests-per-s 900 --memory-gib 80     for a machine that you measured

Arithmetic, for R requests per minute and N items:

    replicas    = max(2, ceil(R / 60 / (requests_per_s * TARGET_LOAD)) + 1)    one may die, none queues
    replica GiB = base + N * (api + engine bytes per item)                     API and engine process
    Redis GiB   = N * redis bytes per item * 2                                 two bundles at a change-over
    shards      = ceil(Redis GiB / SHARD_GIB)

`requests_per_s` is cores / CPU seconds of a request, measured on one batch worker with the torch engine and
OMP_NUM_THREADS=1; CPU seconds, because they hold on a machine that others use too. Bytes per item are
differences of resident memory, and of Redis's used_memory, between a large and a small synthetic
catalogue; `base` is BASE_GIB. HTTP costs come on top (benchmarks/service_load.py). The last line
is one JSON object: {"bench": "capacity", "measured": {...}, "rows": [...]}.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FIGURES = Path(__file__).with_name("capacity.json")
LOADS = (1_000, 100_000, 10_000_000)  # requests per minute
CATALOGUES = (1_000_000, 100_000_000)  # items
# Waiting grows without bound towards 1: an M/M/1 queue waits 1.5 service times on average at 0.6, 9 at 0.9.
TARGET_LOAD = 0.6
SHARD_GIB = 32  # a Redis shard that still restarts within minutes
# The demo's model: API 0.6 GB, vLLM's engine core 0.6 GB, worker 1.8 GB with 1 GiB of prompt cache.
BASE_GIB = 2.8
SMALL, LARGE = 20_000, 220_000  # items of the two synthetic catalogues


@dataclass(frozen=True)
class Costs:
    """What was measured on one kind of machine.

    Attributes:
        machine: in words.
        requests_per_s: of one replica, every core busy.
        base_gib: resident memory of a replica without items.
        replica_bytes_per_item: API and engine process together.
        redis_bytes_per_item: of one bundle's catalogue.
        memory_gib: of the machine.
        recipe: how to repeat it.
    """

    machine: str
    requests_per_s: float
    base_gib: float
    replica_bytes_per_item: float
    redis_bytes_per_item: float
    memory_gib: float
    recipe: str


def plan(costs: Costs, requests_per_minute: int, num_items: int) -> dict[str, Any]:
    """One row of the table; the arithmetic of the module's docstring."""
    per_s = requests_per_minute / 60
    replicas = max(2, math.ceil(per_s / (costs.requests_per_s * TARGET_LOAD)) + 1)
    replica_gib = costs.base_gib + num_items * costs.replica_bytes_per_item / 2**30
    redis_gib = 2 * num_items * costs.redis_bytes_per_item / 2**30
    return {
        "requests_per_minute": requests_per_minute,
        "num_items": num_items,
        "replicas": replicas,
        "replica_gib": round(replica_gib, 1),
        "fits": replica_gib <= costs.memory_gib,
        "redis_gib": round(redis_gib, 1),
        "redis_shards": max(1, math.ceil(redis_gib / SHARD_GIB)),
    }


# --- measuring --------------------------------------------------------------------------------------


def measure(bundle: Path, num_users: int) -> Costs:
    """Throughput on a real bundle, bytes per item on synthetic catalogues."""
    from service.bundle import load_bundle

    small, large = (_in_process("memory", str(size)) for size in (SMALL, LARGE))
    items = LARGE - SMALL
    about = f"bundle {load_bundle(bundle).manifest.name}, k 10, beam 50, histories of 2 to 19 items"
    machine = f"{os.cpu_count()} cores of {_processor()}, {platform.system()}"
    return Costs(
        machine=machine,
        requests_per_s=round(_throughput(bundle, num_users), 2),
        base_gib=BASE_GIB,
        replica_bytes_per_item=round((large["rss"] - small["rss"]) / items, 1),
        redis_bytes_per_item=round((large["redis"] - small["redis"]) / items, 1),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        recipe=f"OMP_NUM_THREADS=1 benchmarks/capacity.py --measure BUNDLE --users {num_users}; {about}",
    )


def _throughput(bundle: Path, num_users: int) -> float:
    """Users per second if every core did what this process does; its start not counted."""
    import numpy as np
    import polars as pl

    from service.batch.job import Job, JobSettings
    from service.batch.parts import start_worker
    from service.bundle import load_bundle

    opened = load_bundle(bundle)
    generator = np.random.default_rng(0)
    item_ids = opened.items["item_id"].to_numpy()
    histories = [
        generator.choice(item_ids, int(length)).tolist() for length in generator.integers(2, 20, num_users)
    ]
    frame = pl.DataFrame({"user_id": [str(user) for user in range(num_users)], "history": histories})
    with tempfile.TemporaryDirectory() as folder:
        frame.write_parquet(Path(folder) / "users.parquet")
        settings = JobSettings(rows_per_part=num_users // 2)
        job = Job.open(Path(folder) / "users.parquet", Path(folder) / "out", settings, opened.bundle_id)
        from service.engine.select import EngineOptions

        worker = start_worker(job, opened, "torch", EngineOptions())
        worker.answer(0)  # warms up
        began = time.process_time()
        users = worker.answer(1)
        cpu_s = time.process_time() - began
        worker.close()
    return (os.cpu_count() or 1) * users / cpu_s


def _in_process(*arguments: str) -> dict[str, float]:
    """This script in a process of its own, whose memory then tells of nothing else."""
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _memory(num_items: int) -> dict[str, float]:
    """Bytes that a replica and Redis hold with a synthetic catalogue."""
    import redis

    from service.catalogue import Catalogue
    from service.catalogue.embedded import EmbeddedRedis
    from service.engine.admission import Admission
    from service.recommender import Recommender

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        bundle = _synthetic_bundle(Path(folder), num_items)
        server = EmbeddedRedis(Path(folder))
        server.ensure()
        stack.callback(server.close)
        catalogue = Catalogue(bundle, redis_url=server.url, data_dir=Path(folder), timeout_s=5.0)
        recommender = Recommender(bundle, catalogue, _NoEngine(), Admission(1))

        async def load() -> None:
            catalogue.start()
            while catalogue.status.state != "ready":
                await asyncio.sleep(0.1)
            await catalogue.records(catalogue.snapshot, range(10))
            await catalogue.close()

        asyncio.run(load())
        bundle.row_of, bundle.popular_rows  # noqa: B018  (what the first request without Redis makes)
        # The engine's process holds trie and filter columns of its own.
        engine_copy = sum(file.stat().st_size for file in bundle.trie_dir.iterdir())
        with redis.Redis.from_url(server.url) as client:
            used = float(client.info("memory")["used_memory"])
        rss = float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        del recommender
    return {"rss": rss + engine_copy, "redis": used}


class _NoEngine:
    async def decode(self, request: Any) -> Any:
        raise NotImplementedError


def _synthetic_bundle(folder: Path, num_items: int) -> Any:
    """Titles of 60 characters, a small JSON object each, no description; 3 levels of 256 codes."""
    import numpy as np
    import polars as pl

    from service.bundle import Level, PromptTemplate, load_bundle, write_bundle
    from service.decoding.trie import Trie

    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"], "vocab_size": 800}))
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    numbers = np.random.default_rng(0).permutation(256**3)[:num_items]
    codes = np.stack([numbers // 65536, numbers // 256 % 256, numbers % 256], axis=1)
    items = pl.DataFrame(
        {
            "item_id": [f"item-{number:09d}" for number in range(num_items)],
            "title": [
                f"Item number {number:09d} with a title of the usual length, blue"
                for number in range(num_items)
            ],
            "description": [""] * num_items,
            "metadata": [
                json.dumps({"category": f"c{number % 40}", "price": number % 997})
                for number in range(num_items)
            ],
            "popularity": np.arange(num_items, dtype=np.int64),
        }
    )
    levels = [Level(letter="abc"[n], codebook_size=256, first_token_id=10 + 256 * n) for n in range(3)]
    write_bundle(
        folder / "bundle",
        name="synthetic",
        model_dir=model,
        codes=codes,
        items=items,
        levels=levels,
        prompt=PromptTemplate(style="sequence", history_limit=20, prefix_token_ids=(1,)),
        build_trie=Trie.build,
    )
    return load_bundle(folder / "bundle")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


# --- output -------------------------------------------------------------------------------------------


def show(costs: Costs) -> list[dict[str, Any]]:
    """Print the table; returns its rows."""
    rows = [plan(costs, load, items) for load in LOADS for items in CATALOGUES]
    console = Console(width=110)
    console.print(
        f"{costs.machine}: {costs.requests_per_s:g} requests/s a replica, {TARGET_LOAD:.0%} of it planned"
    )
    table = Table("requests/min", "items", "replicas", "GiB a replica", "Redis GiB", "Redis shards", "")
    for row in rows:
        note = "" if row["fits"] else f"does not fit {costs.memory_gib:g} GiB: machines with more memory"
        numbers = (f"{row[name]:,}" for name in ("requests_per_minute", "num_items", "replicas"))
        table.add_row(
            *numbers, str(row["replica_gib"]), str(row["redis_gib"]), str(row["redis_shards"]), note
        )
    console.print(table)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Machines for a load, from measured costs.")
    parser.add_argument("--measure", type=Path, metavar="BUNDLE", help="measure on this machine first")
    parser.add_argument("--users", type=int, default=2000, help="requests to measure with")
    parser.add_argument("--requests-per-s", type=float, help="of a replica that you measured elsewhere")
    parser.add_argument("--memory-gib", type=float, help="of that machine")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_memory(int(arguments.child[1]))))
        return
    about: dict[str, Any] = {}
    if arguments.measure:
        costs = measure(arguments.measure, arguments.users)
        about = {"date": time.strftime("%Y-%m-%d")}
        FIGURES.write_text(json.dumps({**asdict(costs), **about}, indent=2) + "\n")
    if not FIGURES.is_file():
        parser.error(f"{FIGURES.name} is missing: measure first, with --measure BUNDLE")
    stored = json.loads(FIGURES.read_text())
    stored.pop("date", None)
    costs = Costs(**stored)
    changes: dict[str, Any] = {}
    if arguments.requests_per_s:
        changes |= {"requests_per_s": arguments.requests_per_s, "machine": "a machine measured elsewhere"}
    if arguments.memory_gib:
        changes["memory_gib"] = arguments.memory_gib
    costs = Costs(**{**asdict(costs), **changes})
    rows = show(costs)
    print(json.dumps({"bench": "capacity", "measured": asdict(costs), "rows": rows}))


if __name__ == "__main__":
    main()
