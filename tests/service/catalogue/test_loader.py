"""Loading into a real Redis: complete, atomic, repeatable, safe with several at once."""

from __future__ import annotations

import asyncio
import json

import pytest

from service.catalogue import keys, loader
from service.catalogue.connection import connect
from service.catalogue.keys import BundleKeys
from service.catalogue.loader import Loader
from service.errors import CatalogueError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(clean_redis):
    client = connect(clean_redis.url, timeout_s=5)
    yield client
    await client.aclose()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(loader, "CHUNK_ITEMS", 7)


async def contents(client):
    return {key.decode(): await client.get(key) for key in sorted(await client.keys("gtirec:b:*"))}


async def test_every_item_and_sid_is_there(client, small_bundle, small_chunks):
    progress = []
    report = await Loader(client, small_bundle, lambda done, total: progress.append((done, total))).load()
    assert (report.num_items, report.num_sids, report.was_loaded) == (40, 39, False)
    assert progress[-1] == (40, 40) and len(progress) >= 5
    names = BundleKeys(small_bundle.bundle_id)
    for row, item in enumerate(small_bundle.items.iter_rows(named=True)):
        stored = json.loads(await client.get(names.item(item["item_id"])))
        sid = small_bundle.semantic_ids[row].tolist()
        assert stored == {"row": row, "sid": sid}
        shown = json.loads(await client.get(names.sid(sid)))
        assert item["title"] in [one["title"] for one in shown]
    shared = json.loads(await client.get(names.sid((0, 0, 0))))
    assert [one["item_id"] for one in shared] == ["item-1", "item-0"]
    assert json.loads(await client.get(keys.ACTIVE))["bundle_id"] == small_bundle.bundle_id
    assert await client.get(names.lock) is None


async def test_loading_again_only_checks(client, small_bundle):
    await Loader(client, small_bundle).load()
    before = await contents(client)
    report = await Loader(client, small_bundle).load()
    assert report.was_loaded and await contents(client) == before


async def test_lost_items_are_noticed_and_loaded_again(client, small_bundle):
    await Loader(client, small_bundle).load()
    before = await contents(client)
    await client.delete(BundleKeys(small_bundle.bundle_id).sid((1, 1, 1)))
    assert not (await Loader(client, small_bundle).load()).was_loaded
    after = await contents(client)
    assert after.keys() == before.keys()


async def test_eight_replicas_at_once_fill_once(client, clean_redis, small_bundle, small_chunks):
    clients = [connect(clean_redis.url, timeout_s=5) for _ in range(8)]
    reports = await asyncio.gather(*(Loader(each, small_bundle).load() for each in clients))
    assert [report.was_loaded for report in reports].count(False) == 1
    for each in clients:
        await each.aclose()


async def test_a_loader_that_died_half_way_does_no_harm(client, small_bundle, small_chunks, monkeypatch):
    class Died(Exception):
        pass

    def die(done, total):
        if done > 20:
            raise Died

    with pytest.raises(Died):
        await Loader(client, small_bundle, die).load()
    assert await client.get(keys.ACTIVE) is None
    assert (await Loader(client, small_bundle).load()).num_items == 40


async def test_a_dead_loaders_lock_expires(client, small_bundle, monkeypatch):
    monkeypatch.setattr(loader, "POLL_S", 0.02)
    await client.set(BundleKeys(small_bundle.bundle_id).lock, json.dumps({"owner": "gone"}), px=300)
    assert (await asyncio.wait_for(Loader(client, small_bundle).load(), 5)).num_items == 40


async def test_redis_that_drops_items_is_refused(client, small_bundle):
    async def eat(done, total):
        await client.delete(BundleKeys(small_bundle.bundle_id).item("item-3"))

    class Forgetful(Loader):
        async def _fill(self):
            await super()._fill()
            await eat(0, 0)

    with pytest.raises(CatalogueError, match="noeviction"):
        await Forgetful(client, small_bundle).load()
    assert await client.get(keys.ACTIVE) is None


async def test_another_bundle_keeps_the_first_for_rollback_and_prune_drops_older(client, small_bundle):
    from dataclasses import replace

    others = [replace(small_bundle, bundle_id=str(n) * 16) for n in (1, 2)]
    for bundle in (small_bundle, *others):
        await Loader(client, bundle).load()
    assert json.loads(await client.get(keys.ACTIVE))["bundle_id"] == "2" * 16
    assert json.loads(await client.get(keys.PREVIOUS))["bundle_id"] == "1" * 16
    await client.set("somebody:else", "1")
    assert await loader.prune(client) == [small_bundle.bundle_id]
    assert await loader.prune(client) == []
    left = {key.decode().split(":")[2] for key in await client.keys("gtirec:b:*")}
    assert left == {"1" * 16, "2" * 16} and await client.get("somebody:else") == b"1"
