"""Engine and Redis killed and stopped under load: how soon answers are degraded, and whole again."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from rich.console import Console
from rich.table import Table

from service_bench.running import Running, service, wait_until_ready

if TYPE_CHECKING:
    from service.catalogue.embedded import EmbeddedRedis

PROBE_S = 0.02  # between two requests of the watcher
AWAY_S = 5.0  # a killed Redis is started again after that
PAUSED_S = 30.0
GIVE_UP_S = 120.0


@dataclass
class Seen:
    """What a client saw of one fault.

    Attributes:
        degraded_s: from the fault to the first answer that says it is degraded.
        not_ready_s: from the fault to the first /readyz that is not 200; None if it never was.
        recovered_s: from the end of the fault to the first answer that is whole again.
        slowest_s: longest answer meanwhile.
        num_answers, num_failed: requests meanwhile, and those not answered with 200.
        num_acknowledged, num_lost: events acknowledged meanwhile, and those not in the history afterwards.
    """

    degraded_s: float | None = None
    not_ready_s: float | None = None
    recovered_s: float | None = None
    slowest_s: float = 0.0
    num_answers: int = 0
    num_failed: int = 0
    acknowledged: set[str] = field(default_factory=set)
    num_lost: int = 0


def run(options: argparse.Namespace, bundle: Path, directory: Path) -> None:
    """Prints a table, and one JSON line last."""
    from service.catalogue.embedded import EmbeddedRedis

    redis = EmbeddedRedis(directory / "redis-of-others")  # the service must not start it again by itself
    redis.ensure()
    settings = {"log_level": "warning", "redis_url": redis.url, "default_beam_width": options.beam_width}
    settings["engine_give_up_s"] = GIVE_UP_S  # a shared machine may take longer to rebuild than the default
    try:
        with service(bundle, directory, options.engine, settings) as running:
            rows = asyncio.run(_all(running, bundle, redis))
    finally:
        redis.close()
    _report(options, rows)


async def _all(running: Running, bundle: Path, redis: EmbeddedRedis) -> dict[str, Seen]:
    import redis as client_library

    from service.bundle import load_bundle

    item_ids = load_bundle(bundle, verify=False).items["item_id"].to_list()[:20]
    with client_library.Redis.from_url(redis.url) as client:
        redis_pid = int(client.info("server")["process_id"])

    async def killed_engine() -> float:
        os.kill(running.engine_pids()[0], signal.SIGKILL)
        return time.perf_counter()

    async def killed_worker() -> float:
        os.kill(running.engine_pids()[-1], signal.SIGKILL)
        return time.perf_counter()

    async def paused_redis() -> float:
        os.kill(redis_pid, signal.SIGSTOP)
        await asyncio.sleep(PAUSED_S)
        os.kill(redis_pid, signal.SIGCONT)
        return time.perf_counter()

    async def killed_redis() -> float:
        os.kill(redis_pid, signal.SIGKILL)
        await asyncio.sleep(AWAY_S)
        await asyncio.to_thread(redis.ensure)
        return time.perf_counter()

    faults: dict[str, Callable] = {
        f"Redis stopped for {PAUSED_S:g} s": paused_redis,
        f"Redis killed, started again after {AWAY_S:g} s": killed_redis,
    }
    async with aiohttp.ClientSession() as session:
        await wait_until_ready(session, running.url)
        if running.engine_pids():  # the torch engine has no process to kill
            faults |= {"engine killed": killed_engine, "worker of the engine killed": killed_worker}
        watcher = _Watcher(session, running.url, item_ids)
        return {name: await watcher.watch(fault) for name, fault in faults.items()}


class _Watcher:
    """Recommends and tells events all the time, as one client."""

    def __init__(self, session: aiohttp.ClientSession, url: str, item_ids: list[str]) -> None:
        self._session, self._url, self._item_ids = session, url, item_ids
        self._num_users = 0

    async def watch(self, fault: Callable) -> Seen:
        """Bring the fault about and look until all is well again."""
        seen, started = Seen(), time.perf_counter()
        self._num_users += 1
        ending = asyncio.create_task(fault())
        readiness = asyncio.create_task(self._watch_readiness(seen, started))
        while seen.recovered_s is None:
            asked = time.perf_counter()
            status, answer = await self._call("POST", "/recommend", {"history": self._item_ids[:5], "k": 10})
            now = time.perf_counter()
            seen.slowest_s = max(seen.slowest_s, now - asked)
            seen.num_answers += 1
            seen.num_failed += status != 200
            is_degraded = status != 200 or answer["degraded"]
            if is_degraded and seen.degraded_s is None:
                seen.degraded_s = now - started
            # An answer that was asked for after the fault's end, and after it was noticed at all.
            if ending.done() and not is_degraded and seen.degraded_s and asked > ending.result():
                seen.recovered_s = now - ending.result()
            if now - started > PAUSED_S + GIVE_UP_S:
                raise SystemExit("the service did not recover; see its log")
            await self._tell(seen)
            await asyncio.sleep(PROBE_S)
        readiness.cancel()
        await wait_until_ready(self._session, self._url)
        await self._count_lost(seen)
        return seen

    async def _tell(self, seen: Seen) -> None:
        event_id = f"{self._num_users}-{seen.num_answers}"
        event = {"user_id": self._user, "item_id": self._item_ids[0], "type": "view", "event_id": event_id}
        status, _ = await self._call("POST", "/events", event)
        if status == 200:
            seen.acknowledged.add(event_id)

    async def _count_lost(self, seen: Seen) -> None:
        give_up_at = time.perf_counter() + 30
        while time.perf_counter() < give_up_at:
            _, answer = await self._call("GET", f"/users/{self._user}/history?limit=1000", None)
            kept = {event["event_id"] for event in answer.get("events", ())}
            newest = set(sorted(seen.acknowledged, key=lambda each: int(each.split("-")[1]))[-500:])
            seen.num_lost = len(newest - kept)  # 500 are kept per user
            if not seen.num_lost:
                return
            await asyncio.sleep(0.2)

    @property
    def _user(self) -> str:
        return f"user-{self._num_users}"

    async def _watch_readiness(self, seen: Seen, started: float) -> None:
        while seen.not_ready_s is None:
            status, _ = await self._call("GET", "/readyz", None)
            if status != 200:
                seen.not_ready_s = time.perf_counter() - started
            await asyncio.sleep(PROBE_S)

    async def _call(self, method: str, path: str, body: object) -> tuple[int, dict]:
        try:
            async with self._session.request(method, self._url + path, json=body) as response:
                return response.status, await response.json()
        except (aiohttp.ClientError, TimeoutError):
            return 0, {}


def _report(options: argparse.Namespace, rows: dict[str, Seen]) -> None:
    table = Table("fault", "degraded after s", "/readyz 503 after s", "whole again after s", "slowest s",
                  "requests", "failed", "events acknowledged", "lost")  # fmt: skip
    result = {}
    for name, seen in rows.items():
        ready = "stays 200" if seen.not_ready_s is None else f"{seen.not_ready_s:.2f}"
        table.add_row(
            name, f"{seen.degraded_s:.2f}", ready, f"{seen.recovered_s:.2f}", f"{seen.slowest_s:.2f}",
            str(seen.num_answers), str(seen.num_failed), str(len(seen.acknowledged)), str(seen.num_lost),
        )  # fmt: skip
        result[name] = {
            "degraded_s": round(seen.degraded_s or 0, 3),
            "not_ready_s": seen.not_ready_s and round(seen.not_ready_s, 3),
            "recovered_s": round(seen.recovered_s or 0, 3),
            "slowest_s": round(seen.slowest_s, 3),
            "requests": seen.num_answers,
            "failed": seen.num_failed,
            "acknowledged": len(seen.acknowledged),
            "lost": seen.num_lost,
        }
    Console().print(table)
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"bench": "service_faults", "engine": options.engine, "load": load, "faults": result}))
