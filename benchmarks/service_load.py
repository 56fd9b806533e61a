"""What HTTP adds to the engine, how much one replica carries, and what happens at twice that.

python benchmarks/service_load.py --quick                      2 minutes, a random model of 20,000 items
python benchmarks/service_load.py --bundle runs/demo/bundle    10 minutes, a trained one

Open loop: requests leave at Poisson moments drawn beforehand, whether or not answers came, and every
latency counts from the moment the request was due, so that a stalled service cannot hide its stall
(coordinated omission). Generator, API and Redis share core 0, the engine's processes have core 1. Three
phases: capacity (as many answers a second as come back with a full queue), unloaded (a fifth of it),
overload (twice it). Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

HUNG_S = 30.0
API_CORE, ENGINE_CORE = 0, 1
READY_S = 240.0
NUM_ITEMS, SIZES, VOCAB = 20_000, (64, 64, 64), 400


@dataclass(frozen=True)
class Answer:
    """One request. `late_s`: from the moment it was due to the last byte; `engine_ms`: its decode stage."""

    status: int
    late_s: float
    engine_ms: float = 0.0


def random_bundle(directory: Path) -> Path:
    """A bundle with random weights: the work of a decode does not depend on them."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from service.bundle import Level, PromptTemplate, write_bundle
    from service.decoding.trie import Trie

    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=384, num_hidden_layers=4, head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(directory / "model")
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, SIZES[0], size=(NUM_ITEMS, len(SIZES))), axis=0)
    items = pl.DataFrame(
        {
            "item_id": [f"item-{n}" for n in range(len(codes))],
            "title": [f"Item {n}" for n in range(len(codes))],
            "description": [""] * len(codes),
            "metadata": ["{}"] * len(codes),
            "popularity": rng.integers(0, 1000, len(codes)),
        },
        schema_overrides={"popularity": pl.Int64},
    )
    levels = [
        Level(letter="abc"[n], codebook_size=size, first_token_id=100 + 64 * n)
        for n, size in enumerate(SIZES)
    ]
    write_bundle(
        directory / "bundle", name="load", model_dir=directory / "model", codes=codes, items=items,
        levels=levels, prompt=PromptTemplate(style="sequence", history_limit=20, prefix_token_ids=(1,)),
        build_trie=Trie.build,
    )  # fmt: skip
    return directory / "bundle"


@contextmanager
def service(options: argparse.Namespace, bundle: Path, directory: Path) -> Iterator[tuple[str, int]]:
    """A running service: its URL and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GTIREC_MAX_INFLIGHT_BEAM_ROWS": str(options.inflight_rows),
        "GTIREC_MAX_BEAM_WIDTH": str(options.beam_width),
        "GTIREC_DEFAULT_BEAM_WIDTH": str(options.beam_width),
        "GTIREC_QUEUE_TIMEOUT_S": str(options.queue_s),
        "GTIREC_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--engine", options.engine]
    command += ["--port", str(port), "--data-dir", str(directory / "data")]
    with (directory / "service.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
    try:
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pin(pid: int, core: int) -> None:
    """Put all threads of a process on one core."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            os.sched_setaffinity(int(task.name), {core})
        except ProcessLookupError:
            continue


def children(pid: int) -> list[tuple[int, str]]:
    """Descendants of a process with their command lines."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            name = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [(child, name), *children(child)]
    return found


def separate(pid: int) -> str:
    """Generator, API and Redis on one core, the engine's processes on the other; says what was done."""
    if (os.cpu_count() or 1) < 2:
        return "one core for everything"
    pin(os.getpid(), API_CORE)
    pin(pid, API_CORE)
    engines = 0
    for child, name in children(pid):
        is_engine = "redis" not in name and "resource_tracker" not in name
        pin(child, ENGINE_CORE if is_engine else API_CORE)
        engines += is_engine
    if not engines:  # the torch engine is a thread of the API's process
        os.sched_setaffinity(pid, {API_CORE, ENGINE_CORE})
        for task in Path(f"/proc/{pid}/task").glob("*"):
            os.sched_setaffinity(int(task.name), {API_CORE, ENGINE_CORE})
        return f"generator on core {API_CORE}; API and engine in one process on both"
    return f"generator, API, Redis on core {API_CORE}; engine on core {ENGINE_CORE}"


async def wait_until_ready(session: aiohttp.ClientSession, url: str) -> None:
    give_up_at = time.monotonic() + READY_S
    while time.monotonic() < give_up_at:
        try:
            async with session.get(f"{url}/readyz") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit("the service did not become ready; see its log")


class Generator:
    """Sends recommendations with random histories of the bundle's items."""

    def __init__(self, session: aiohttp.ClientSession, url: str, item_ids: list[str], k: int) -> None:
        self._session, self._url, self._item_ids, self._k = session, url, item_ids, k
        self._rng = np.random.default_rng(1)

    async def open_loop(self, per_s: float, seconds: float) -> list[Answer]:
        """Poisson arrivals."""
        gaps = self._rng.exponential(1 / per_s, size=max(1, int(1.2 * per_s * seconds) + 20))
        moments = np.cumsum(gaps)
        moments = moments[moments < seconds]
        bodies = [self._body() for _ in moments]
        start, tasks = time.perf_counter(), []
        for moment, body in zip(moments, bodies, strict=True):
            due = start + float(moment)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._send(body, due)))
        return list(await asyncio.gather(*tasks))

    async def closed_loop(self, num_clients: int, seconds: float) -> float:
        """Answers a second with so many clients, each sending as soon as it was answered."""
        end = time.perf_counter() + seconds
        num_answers = 0

        async def client() -> None:
            nonlocal num_answers
            while (now := time.perf_counter()) < end:
                answer = await self._send(self._body(), now)
                num_answers += answer.status == 200
                if answer.status == 429:
                    await asyncio.sleep(0.005)

        await asyncio.gather(*(client() for _ in range(num_clients)))
        return num_answers / seconds

    def _body(self) -> bytes:
        places = self._rng.integers(0, len(self._item_ids), int(self._rng.integers(5, 20)))
        return json.dumps({"history": [self._item_ids[n] for n in places], "k": self._k}).encode()

    async def _send(self, body: bytes, due: float) -> Answer:
        try:
            async with self._session.post(
                f"{self._url}/recommend", data=body, headers={"content-type": "application/json"},
                timeout=aiohttp.ClientTimeout(HUNG_S),
            ) as response:  # fmt: skip
                raw = await response.read()
                late_s = time.perf_counter() - due
                engine_ms = 0.0
                if response.status == 200:
                    answer = json.loads(raw)
                    engine_ms = answer["timings"].get("decode", 0.0)
                return Answer(response.status, late_s, engine_ms)
        except (aiohttp.ClientError, TimeoutError):
            return Answer(0, time.perf_counter() - due)


def percentile(values: list[float], share: float) -> float:
    """In the unit of the values; NaN if there are none."""
    return float(np.percentile(values, share)) if values else float("nan")


async def measure(options: argparse.Namespace, url: str, pid: int, bundle: Path) -> None:
    """All phases."""
    from service.bundle import load_bundle

    seconds = 25.0 if options.quick else options.seconds
    item_ids = load_bundle(bundle, verify=False).items["item_id"].to_list()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await wait_until_ready(session, url)
        cores = separate(pid)
        generator = Generator(session, url, item_ids, options.k)
        await generator.closed_loop(2, 3)  # warm up
        num_clients = max(1, options.inflight_rows // options.beam_width)
        capacity = await generator.closed_loop(num_clients, seconds / 2)
        unloaded = await generator.open_loop(max(1.0, 0.2 * capacity), seconds)
        overload = await generator.open_loop(max(2.0, 2 * capacity), seconds)
    good = [one for one in unloaded if one.status == 200]
    overhead = [1000 * one.late_s - one.engine_ms for one in good]
    admitted = [one.late_s for one in overload if one.status == 200]
    unloaded_p99 = percentile([one.late_s for one in good], 99)
    table = Table("phase", "requests", "200", "429", "5xx", "no answer", "p50 ms", "p99 ms")
    for name, answers in (("unloaded", unloaded), ("overload", overload)):
        late = [1000 * one.late_s for one in answers if one.status == 200]
        statuses = [one.status for one in answers]
        table.add_row(
            name, str(len(answers)), str(statuses.count(200)), str(statuses.count(429)),
            str(sum(status >= 500 for status in statuses)), str(statuses.count(0)),
            f"{percentile(late, 50):.1f}", f"{percentile(late, 99):.1f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(f"{cores}; engine {options.engine}; capacity {capacity:.1f} answers a second")
    statuses = [one.status for one in overload]
    result = {
        "bench": "service",
        "overhead_ms": {"p50": round(percentile(overhead, 50), 2), "p99": round(percentile(overhead, 99), 2)},
        "capacity_rps": round(capacity, 1),
        "overload": {
            "admitted_p99_ratio": round(percentile(admitted, 99) / unloaded_p99, 2),
            "rejected_429": statuses.count(429),
            "hung": statuses.count(0),
            "errors_5xx": sum(status >= 500 for status in [*statuses, *(one.status for one in unloaded)]),
        },
    }
    print(json.dumps(result), flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle; default: a random model")
    parser.add_argument("--engine", default="vllm_pooling", help="vllm_pooling, vllm_logits or torch")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--beam-width", type=int, default=20)
    parser.add_argument("--inflight-rows", type=int, default=40, help="GTIREC_MAX_INFLIGHT_BEAM_ROWS")
    parser.add_argument("--queue-s", type=float, default=0.01, help="GTIREC_QUEUE_TIMEOUT_S")
    parser.add_argument("--seconds", type=float, default=240.0, help="length of a phase")
    parser.add_argument("--quick", action="store_true", help="2 minutes in all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundle = options.bundle or random_bundle(directory)
        with service(options, bundle, directory) as (url, pid):
            try:
                asyncio.run(measure(options, url, pid, bundle))
            except (SystemExit, KeyboardInterrupt):
                sys.stderr.write((directory / "service.log").read_text()[-3000:])
                raise


if __name__ == "__main__":
    main()
