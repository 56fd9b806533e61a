"""A primary that dies under Sentinels: the service goes on with the one they name next."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from service.catalogue.embedded import find_server_binary
from service.errors import CatalogueError
from service.redis_url import SentinelUrl

pytestmark = pytest.mark.anyio


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def server(directory: Path, *lines: str, sentinel: bool = False) -> Iterator[tuple[int, int]]:
    """A redis-server: its port and process id."""
    directory.mkdir()
    port = free_port()
    config = directory / "redis.conf"
    config.write_text("\n".join([f"port {port}", "bind 127.0.0.1", f"dir {directory}", 'save ""', *lines]))
    command = [find_server_binary(), str(config), *["--sentinel"] * sentinel]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            give_up_at = time.monotonic() + 20
            while True:
                with contextlib.suppress(redis.RedisError):
                    if client.ping():
                        break
                assert time.monotonic() < give_up_at
                time.sleep(0.02)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def sentinels(tmp_path) -> Iterator[tuple[str, int, int]]:
    """URL by Sentinels, and the primary's port and process id."""
    try:
        find_server_binary()
    except CatalogueError as error:
        pytest.skip(str(error))
    with contextlib.ExitStack() as stack:
        synced = ("appendonly yes", "appendfsync always")  # else events take the way through the buffer
        primary, pid = stack.enter_context(server(tmp_path / "primary", *synced))
        stack.enter_context(server(tmp_path / "second", f"replicaof 127.0.0.1 {primary}", *synced))
        with redis.Redis(port=primary) as client:
            while client.info("replication").get("slave0", {}).get("state") != "online":
                time.sleep(0.05)
        watch = (
            f"sentinel monitor shop 127.0.0.1 {primary} 1",
            "sentinel down-after-milliseconds shop 500",
            "sentinel failover-timeout shop 3000",
        )
        port, _ = stack.enter_context(server(tmp_path / "sentinel", *watch, sentinel=True))
        with redis.Redis(port=port) as client:
            while client.sentinel_master("shop")["num-slaves"] < 1:
                time.sleep(0.05)
        yield f"redis+sentinel://127.0.0.1:{port}/shop/0", primary, pid


async def test_a_killed_primary_is_replaced_and_nothing_that_was_replicated_is_lost(start_app, sentinels):
    url, primary, pid = sentinels
    async with start_app(redis_url=url) as running:
        answer = (await running.client.post("/recommend", json={"history": ["item-9"], "k": 3})).json()
        assert not answer["degraded"]
        told = set()

        async def tell(number: int) -> dict:
            event = {"user_id": "ann", "item_id": "item-1", "type": "view", "event_id": f"e{number}"}
            response = await running.client.post("/events", json=event)
            assert response.status_code == 200
            told.add(f"e{number}")
            return response.json()

        assert not (await tell(0))["buffered"]
        changed = {"title": "New red lamp", "metadata": {"colour": "red"}}
        assert (await running.client.put("/items/new-1", json=changed)).status_code == 201
        with redis.Redis(port=primary) as client:
            client.wait(1, 5000)  # what the second has not received when the first dies is gone
        os.kill(pid, signal.SIGKILL)
        assert (await tell(1))["buffered"]
        answer = (await running.client.post("/recommend", json={"history": ["item-9"], "k": 3})).json()
        assert len(answer["items"]) == 3 and answer["degraded"]
        place = SentinelUrl.parse(url).hosts[0][1]
        with redis.Redis(port=place) as watcher:  # until it names the second, it may name none any moment
            await running.until(lambda: watcher.sentinel_master("shop")["port"] != primary, timeout_s=60)
        await running.until(lambda: running.services.catalogue.client is not None, timeout_s=60)
        answer = (await running.client.post("/recommend", json={"history": ["item-9"], "k": 3})).json()
        assert not answer["degraded"]
        assert (await running.client.get("/items/new-1")).json()["title"] == "New red lamp"
        assert not (await tell(2))["buffered"]

        async def known() -> set[str]:
            response = await running.client.get("/users/ann/history")
            if response.status_code == 503:  # Sentinel may name no primary for a moment more
                return set()
            return {event["event_id"] for event in response.json()["events"]}

        async with asyncio.timeout(20):
            while await known() != told:  # the buffer is replayed
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("url", "hosts", "for_redis", "for_sentinels"),
    [
        ("redis+sentinel://a/shop", (("a", 26379),), {"db": 0}, {}),
        (
            "rediss+sentinel://u:p%40ss@a:1,b,[::1]:3/my%2Fshop/2?sentinel_password=x",
            (("a", 1), ("b", 26379), ("::1", 3)),
            {"db": 2, "username": "u", "password": "p@ss", "ssl": True},
            {"password": "x", "ssl": True},
        ),
    ],
)
def test_urls_of_sentinels(url, hosts, for_redis, for_sentinels):
    place = SentinelUrl.parse(url)
    assert (place.hosts, place.for_redis, place.for_sentinels) == (hosts, for_redis, for_sentinels)
    assert "p@ss" not in repr(place)
