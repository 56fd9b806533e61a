"""What HTTP adds to the engine, how much one replica carries, and what happens at twice that."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from service_bench.generator import Answer, Generator, percentile
from service_bench.running import Running, separate, service, wait_until_ready

UNLOADED_SHARE = 0.2  # of the capacity


def run(options: argparse.Namespace, bundle: Path, directory: Path) -> None:
    """All phases; prints tables, and one JSON line last."""
    settings = {
        "max_inflight_beam_rows": options.inflight_rows,
        "max_beam_width": options.beam_width,
        "default_beam_width": options.beam_width,
        "queue_timeout_s": options.queue_s,
        "log_level": "warning",
    }
    with service(bundle, directory, options.engine, settings) as running:
        asyncio.run(_measure(options, running, bundle))


async def _measure(options: argparse.Namespace, running: Running, bundle: Path) -> None:
    from service.bundle import load_bundle

    seconds = 25.0 if options.quick else options.seconds
    item_ids = load_bundle(bundle, verify=False).items["item_id"].to_list()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await wait_until_ready(session, running.url)
        cores = separate(running)
        generator = Generator(session, running.url, item_ids, options.k)
        await generator.closed_loop(2, 3)  # warm up
        num_clients = max(1, options.inflight_rows // options.beam_width)
        capacity = await generator.closed_loop(num_clients, seconds / 2)
        per_s = max(1.0, UNLOADED_SHARE * capacity)
        floor = await generator.open_loop(per_s, seconds / 3, path="/livez")
        unloaded = await generator.open_loop(per_s, seconds)
        overload = await generator.open_loop(max(2.0, 2 * capacity), seconds)
    console = Console()
    console.print(_phases({"livez": floor, "unloaded": unloaded, "overload": overload}))
    good = [one for one in unloaded if one.status == 200]
    console.print(_stages(good))
    load = os.getloadavg()[0]
    console.print(
        f"{cores}; engine {options.engine}; capacity {capacity:.1f} answers a second; load {load:.1f}"
    )
    print(json.dumps(_result(capacity, floor, good, unloaded, overload)), flush=True)


def _result(
    capacity: float, floor: list[Answer], good: list[Answer], unloaded: list[Answer], overload: list[Answer]
) -> dict[str, object]:
    admitted = [one.late_s for one in overload if one.status == 200]
    statuses = [one.status for one in overload]
    return {
        "bench": "service",
        "overhead_ms": _percentiles([one.overhead_ms for one in good]),
        "floor_ms": _percentiles([1000 * one.late_s for one in floor]),
        "capacity_rps": round(capacity, 1),
        "overload": {
            "admitted_p99_ratio": round(
                percentile(admitted, 99) / percentile([one.late_s for one in good], 99), 2
            ),
            "rejected_429": statuses.count(429),
            "hung": statuses.count(0),
            "errors_5xx": sum(status >= 500 for status in [*statuses, *(one.status for one in unloaded)]),
        },
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{share}": round(percentile(values, share), 2) for share in (50, 99)}


def _phases(phases: dict[str, list[Answer]]) -> Table:
    table = Table("phase", "requests", "200", "429", "5xx", "no answer", "p50 ms", "p99 ms")
    for name, answers in phases.items():
        late = [1000 * one.late_s for one in answers if one.status == 200]
        statuses = [one.status for one in answers]
        table.add_row(
            name, str(len(answers)), str(statuses.count(200)), str(statuses.count(429)),
            str(sum(status >= 500 for status in statuses)), str(statuses.count(0)),
            f"{percentile(late, 50):.1f}", f"{percentile(late, 99):.1f}",
        )  # fmt: skip
    return table


def _stages(answers: list[Answer]) -> Table:
    """Where the time of an unloaded request goes. `around`: HTTP, parsing, the way back."""
    table = Table("stage", "p50 ms", "p99 ms", "max ms", title="unloaded")
    columns = {
        "sent late": [1000 * one.sent_s for one in answers],
        **{
            name: [one.timings.get(name, 0.0) for one in answers]
            for name in ("resolve", "decode", "fill", "items")
        },
        "around": [1000 * (one.late_s - one.sent_s) - one.timings["total"] for one in answers],
        "overhead": [one.overhead_ms for one in answers],
    }
    for name, values in columns.items():
        table.add_row(name, *(f"{percentile(values, share):.2f}" for share in (50, 99, 100)))
    return table
