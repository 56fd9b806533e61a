"""Steady load, events and item changes for a long time: memory of every process, once a minute."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from service_bench.generator import Generator
from service_bench.running import Running, service, wait_until_ready

RECOMMENDATIONS_PER_S, EVENTS_PER_S, CHANGES_PER_S = 5.0, 10.0, 0.5
NUM_USERS, NUM_NEW = 500, 200
EVENT_HISTORY = 30  # per user: reached within half an hour, so that Redis comes to a steady state too
WARM_UP_MINUTES = 5
MIB = 2**20


def run(options: argparse.Namespace, bundle: Path, directory: Path) -> None:
    """Prints a line a minute, a table, and one JSON line last."""
    settings = {"log_level": "warning", "default_beam_width": options.beam_width}
    settings["event_history"] = EVENT_HISTORY
    with service(bundle, directory, options.engine, settings) as running:
        asyncio.run(_measure(options, running, bundle))


async def _measure(options: argparse.Namespace, running: Running, bundle: Path) -> None:
    from service.bundle import load_bundle

    item_ids = load_bundle(bundle, verify=False).items["item_id"].to_list()
    async with aiohttp.ClientSession() as session:
        await wait_until_ready(session, running.url)
        work = _Work(session, running.url, Generator(session, running.url, item_ids, options.k), item_ids)
        streams = [
            asyncio.create_task(_steadily(per_s, send))
            for per_s, send in (
                (RECOMMENDATIONS_PER_S, work.recommend),
                (EVENTS_PER_S, work.tell),
                (CHANGES_PER_S, work.change),
            )
        ]
        rows = [_memory(running)]
        for minute in range(1, round(options.soak) + 1):
            await asyncio.sleep(60)
            rows.append(_memory(running))
            counts = " ".join(f"{name} {count}" for name, count in sorted(work.outcomes.items()))
            print(f"{minute} min: {_spelled(rows[-1])}; {counts}", flush=True)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    _report(options, rows, work.outcomes)


class _Work:
    """What the streams send, and what came of it."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, generator: Generator, item_ids: list[str]
    ) -> None:
        self._session, self._url, self._generator, self._item_ids = session, url, generator, item_ids
        self._rng = np.random.default_rng(2)
        self._num_changes = 0
        self.outcomes: Counter[str] = Counter()

    async def recommend(self) -> None:
        """A history, or every second time a user whose history the service keeps."""
        if self._rng.random() < 0.5:
            await self._send("POST", "/recommend", {"user_id": self._user(), "k": 10})
            return
        answer = await self._generator.send(self._generator.body(), time.perf_counter())
        self.outcomes[f"/recommend:{answer.status}"] += 1

    async def tell(self) -> None:
        """A user views an item."""
        event = {"user_id": self._user(), "item_id": self._item(), "type": "view"}
        await self._send("POST", "/events", event)

    async def change(self) -> None:
        """A new item, a change, or a delete, in turn; the catalogue stays of one size."""
        self._num_changes += 1
        new = f"new-{self._num_changes // 3 % NUM_NEW}"
        kind = self._num_changes % 3
        if kind == 0:
            words = self._rng.integers(0, 2000, 3)
            title = " ".join(f"word{word}" for word in words)
            await self._send("PUT", f"/items/{new}", {"title": title, "metadata": {"price": 3}})
        elif kind == 1:
            await self._send("PATCH", f"/items/{self._item(200)}", {"metadata": {"price": self._num_changes}})
        else:
            await self._send("DELETE", f"/items/{new}", None)

    def _user(self) -> str:
        return f"user-{self._rng.integers(NUM_USERS)}"

    def _item(self, among: int | None = None) -> str:
        return self._item_ids[self._rng.integers(among or len(self._item_ids))]

    async def _send(self, method: str, path: str, body: object) -> None:
        route = path.split("/")[1]
        try:
            async with self._session.request(method, self._url + path, json=body) as response:
                await response.read()
                self.outcomes[f"{method} /{route}:{response.status}"] += 1
        except (aiohttp.ClientError, TimeoutError):
            self.outcomes[f"{method} /{route}:none"] += 1


async def _steadily(per_s: float, send: Callable[[], Awaitable[None]]) -> None:
    """Open loop with at most 50 under way: after a pause of the whole machine nothing is caught up on."""
    rng, under_way = np.random.default_rng(3), set[asyncio.Future[None]]()
    while True:
        await asyncio.sleep(float(rng.exponential(1 / per_s)))
        if len(under_way) < 50:
            task = asyncio.ensure_future(send())
            under_way.add(task)
            task.add_done_callback(under_way.discard)


def _memory(running: Running) -> dict[str, float]:
    """Resident MiB: private pages and those shared with others."""
    of = {"API": [running.pid], "engine": running.engine_pids(), "Redis": running.redis_pids()}
    return {
        name: sum(psutil.Process(pid).memory_info().rss for pid in pids) / MIB for name, pids in of.items()
    }


def _spelled(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {mib:.1f} MiB" for name, mib in row.items())


def _report(options: argparse.Namespace, rows: list[dict[str, float]], outcomes: Counter[str]) -> None:
    table = Table("minute", *rows[0])
    for minute, row in enumerate(rows):
        table.add_row(str(minute), *(f"{mib:.1f}" for mib in row.values()))
    Console().print(table)
    settled = rows[min(WARM_UP_MINUTES, len(rows) - 1) :]
    minutes = np.arange(len(settled))
    slopes = {
        name: round(60 * float(np.polyfit(minutes, [row[name] for row in settled], 1)[0]), 2)
        if len(settled) > 2
        else None
        for name in rows[0]
    }
    bad = sum(n for name, n in outcomes.items() if not name.endswith((":200", ":201", ":204", ":404")))
    result = {
        "bench": "service_soak",
        "minutes": options.soak,
        "answers": dict(sorted(outcomes.items())),
        "not_2xx_or_404": bad,
        "mib_first": {name: round(mib, 1) for name, mib in rows[0].items()},
        "mib_after_warm_up": {name: round(mib, 1) for name, mib in settled[0].items()},
        "mib_last": {name: round(mib, 1) for name, mib in rows[-1].items()},
        "mib_per_hour_after_warm_up": slopes,
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result), flush=True)
