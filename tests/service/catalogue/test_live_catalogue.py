"""Live updates: several replicas on one real Redis, which must end in the same state whatever happens."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import weakref
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest

from service.catalogue import Catalogue, Delete, Patch, Put, update_log
from service.catalogue.bundle_items import BundleItems
from service.catalogue.connection import connect
from service.catalogue.keys import LiveKeys
from service.catalogue.records import ItemRecord
from service.catalogue.snapshot import Snapshot
from service.errors import CatalogueError, NotFound, VersionConflict

pytestmark = pytest.mark.anyio


class RecordingEngine:
    """Remembers what it was told; `spaces` maps a version to the rows hidden in it."""

    def __init__(self):
        self.directories = []
        self.hidden = {}
        self.error = None

    async def load_catalogue(self, directory):
        if self.error is not None:
            raise self.error
        assert (directory / "trie").is_dir()
        self.directories.append(directory)

    async def hide_rows(self, rows, trie_version):
        self.hidden[trie_version] = rows.tolist()


@asynccontextmanager
async def replicas(bundle, url, data_dir, count=2):
    async with AsyncExitStack() as stack:
        opened = []
        for place in range(count):
            catalogue = Catalogue(bundle, redis_url=url, data_dir=data_dir / str(place), timeout_s=0.5)
            catalogue.engine = RecordingEngine()
            catalogue.start(catalogue.engine)
            stack.push_async_callback(catalogue.close)
            opened.append(catalogue)
        for catalogue in opened:
            await until(lambda: catalogue.status.state == "ready")  # noqa: B023
        yield opened


async def until(condition, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def settled(catalogues):
    """All replicas know and decode the newest version."""
    newest = max(catalogue.version for catalogue in catalogues)
    await until(lambda: all(each.snapshot.version == newest for each in catalogues))


def state_of(catalogue):
    """Everything that must be equal on every replica."""
    snapshot = catalogue.snapshot
    return (
        catalogue.replica.live.head,
        catalogue.replica.live.digest_lines(),
        snapshot.trie_version,
        snapshot.item_ids(range(snapshot.num_items)),
        snapshot.semantic_ids.tolist(),
        snapshot.hidden_rows.tolist(),
        snapshot.popular_rows.tolist(),
    )


async def test_a_new_item_gets_a_free_sid_on_every_replica(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path, 3) as opened:
        written = await opened[0].write([Put("new-1", "New red lamp", metadata={"colour": "red"})])
        assert written.version == 1 and written.is_new == [True]
        codes = written.records[0].codes
        assert codes not in {tuple(sid) for sid in small_bundle.semantic_ids.tolist()}
        await settled([*opened])
        await until(lambda: all(each.version == 1 for each in opened))
        await settled(opened)
        for catalogue in opened:
            row = catalogue.snapshot.row_of("new-1")
            assert catalogue.snapshot.codes_of(row) == codes
            assert catalogue.snapshot.num_items == 41
            found = await catalogue.records(catalogue.snapshot, [row, 0])
            assert [record.item_id for record in found.value] == ["new-1", "item-1"] or row < 1
            assert (await catalogue.item("new-1")).value.metadata == {"colour": "red"}
        assert state_of(opened[0]) == state_of(opened[1]) == state_of(opened[2])


async def test_a_deleted_item_is_hidden_at_once_and_then_gone(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path) as (one, other):
        before = one.snapshot
        row = before.row_of("item-7")
        await one.write([Delete("item-7")])
        assert row in before.hidden_rows  # on return, before any rebuild
        await until(lambda: row in before.hidden_rows and other.version == 1)
        await settled([one, other])
        for catalogue in (one, other):
            assert catalogue.snapshot.row_of("item-7") is None
            assert catalogue.snapshot.resolve(["item-7"]) == {}
            assert (await catalogue.item("item-7")).value is None
            assert [row] in catalogue.engine.hidden.values() or catalogue.engine.directories
        with pytest.raises(NotFound):
            await other.write([Delete("item-7")])
        again = await other.write([Put("item-7", "White desk No. 7", "A white thing.", {"colour": "white"})])
        assert again.records[0].codes == before.codes_of(row)  # the ID that the model was trained with


async def test_out_of_stock_is_hidden_but_known(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path) as (one, other):
        codes = one.snapshot.codes_of(one.snapshot.row_of("item-9"))
        await one.write([Patch("item-9", {"is_available": False})])
        assert len(one.snapshot.hidden_rows) == 1 or one.snapshot.row_of("item-9") is None
        await until(lambda: other.version == 1)
        await settled([one, other])
        ref = other.snapshot.resolve(["item-9"])["item-9"]
        assert ref.row is None and ref.codes == codes
        assert not (await other.item("item-9")).value.is_available
        await other.write([Patch("item-9", {"is_available": True})])
        await settled([other])
        assert other.snapshot.codes_of(other.snapshot.row_of("item-9")) == codes


async def test_a_patch_keeps_the_sid_unless_the_text_changes(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path, 1) as (one,):
        before = (await one.item("item-9")).value
        cheap = (await one.write([Patch("item-9", {"metadata": {"price": 3, "colour": None}})])).records[0]
        assert cheap.codes == before.codes and cheap.metadata == {"price": 3}
        assert cheap.title == before.title and cheap.description == before.description
        moved = (await one.write([Patch("item-9", {"title": "New green mirror"})])).records[0]
        assert moved.codes != before.codes and moved.metadata == {"price": 3}


async def test_versions_conflict(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path) as (one, other):
        version = (await one.write([Patch("item-3", {"popularity": 9}, if_version=0)])).version
        with pytest.raises(VersionConflict, match="at version 1, not at version 0"):
            await other.write([Patch("item-3", {"popularity": 5}, if_version=0)])
        await other.write([Patch("item-3", {"popularity": 5}, if_version=version)])
        with pytest.raises(VersionConflict, match="only a new one was wanted"):
            await one.write([Put("item-3", "x", only_new=True)])
        assert (await one.item("item-3")).value.popularity == 5


async def test_writers_on_all_replicas_at_once_never_share_a_sid(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path, 3) as opened:
        jobs = [opened[n % 3].write([Put(f"new-{n}", f"New blue desk {n}")]) for n in range(18)]
        written = await asyncio.gather(*jobs)
        sids = [one.records[0].codes for one in written]
        taken = {tuple(sid) for sid in small_bundle.semantic_ids.tolist()}
        assert len(set(sids)) == 18 and not taken & set(sids)
        assert sorted(one.version for one in written) == list(range(1, 19))
        for catalogue in opened:
            await catalogue.item("new-0")
        await settled(opened)
        assert state_of(opened[0]) == state_of(opened[1]) == state_of(opened[2])


async def test_a_full_catalogue_refuses_and_changes_nothing(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path, 1) as (one,):
        num_free = 4**3 - len(np.unique(small_bundle.semantic_ids, axis=0))
        with pytest.raises(CatalogueError, match="all semantic IDs"):
            await one.write([Put(f"new-{n}", "New lamp") for n in range(num_free + 1)])
        assert one.version == 0 and one.snapshot.num_items == 40
        written = await one.write([Put(f"new-{n}", "New lamp") for n in range(num_free)])
        assert len({record.codes for record in written.records}) == num_free
        with pytest.raises(CatalogueError, match="all semantic IDs"):
            await one.write([Put("one-more", "New lamp")])
        await one.write([Delete("new-0")])
        await one.write([Put("one-more", "New lamp")])


async def test_bulk_is_one_version_and_all_or_nothing(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path) as (one, other):
        operations = [Put("new-1", "New lamp"), Delete("item-1"), Patch("nobody", {"popularity": 1})]
        with pytest.raises(NotFound, match="line 3: "):
            await one.write(operations, names=["line 1", "line 2", "line 3"])
        assert one.version == 0
        written = await one.write(operations, skip_refused=True)
        assert written.version == 1 and list(written.refused) == [2]
        order = [Put("new-2", "x"), Patch("new-2", {"title": "y"}), Delete("new-1"), Put("new-1", "again")]
        written = await one.write(order)
        assert [record and record.title for record in written.records] == ["y", "y", "again", "again"]
        assert (await other.item("new-2")).value.title == "y"
        assert other.version == 2


async def test_a_restart_replays_the_log(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path, 1) as (one,):
        await one.write([Put("new-1", "New lamp"), Delete("item-1")])
        await one.write([Patch("item-2", {"is_available": False})])
        await settled([one])
        before = state_of(one)
    async with replicas(small_bundle, clean_redis.url, tmp_path, 1) as (one,):
        assert one.version == 2  # ready means: replayed
        for item_id in ("item-1", "item-2"):
            row = one.snapshot.row_of(item_id)
            assert row is None or row in one.snapshot.hidden_rows
        await settled([one])
        assert state_of(one) == before


async def test_a_folded_log_gives_the_same_state(small_bundle, clean_redis, tmp_path, monkeypatch):
    monkeypatch.setattr("service.catalogue.replica.FOLD_AFTER", 10)
    monkeypatch.setattr(update_log, "KEPT_ENTRIES", 3)
    monkeypatch.setattr(update_log, "PIECE", 2)
    client = connect(clean_redis.url, timeout_s=5)
    keys = LiveKeys(small_bundle.bundle_id)
    async with replicas(small_bundle, clean_redis.url, tmp_path, 2) as opened:
        for number in range(25):
            await opened[number % 2].write([Patch(f"item-{number}", {"popularity": number})])
        await opened[0].write([Delete("item-39"), Put("new-1", "New lamp")])
        await until(lambda: all(each.version == 26 for each in opened))

        async with asyncio.timeout(5):
            while await client.xlen(keys.log) > 10:
                await asyncio.sleep(0.01)
        await settled(opened)
        before = state_of(opened[0])
        assert state_of(opened[1]) == before
    async with replicas(small_bundle, clean_redis.url, tmp_path, 1) as (one,):
        await settled([one])
        assert state_of(one) == before
    assert len([key async for key in client.scan_iter(keys.state + ":*")]) == 1
    await client.aclose()


class Wire:
    """A way to Redis that can be cut: a socket that passes everything on, or drops everything."""

    def __init__(self, url, path):
        self._target = url.removeprefix("unix://")
        self._path = path
        self._pumps = set()
        self.url = f"unix://{path}"

    async def connect(self):
        self._server = await asyncio.start_unix_server(self._accept, self._path)

    async def cut(self):
        self._server.close()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader, writer):
        to_redis = await asyncio.open_unix_connection(self._target)
        for source, sink in ((reader, to_redis[1]), (to_redis[0], writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source, sink):
        try:
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()


async def test_a_cut_network_costs_nothing_but_time(small_bundle, clean_redis, tmp_path):
    wire = Wire(clean_redis.url, tmp_path / "wire")
    await wire.connect()
    async with (
        replicas(small_bundle, clean_redis.url, tmp_path / "near", 1) as (one,),
        replicas(small_bundle, wire.url, tmp_path / "far", 1) as (other,),
    ):
        await wire.cut()
        await until(lambda: other.status.state == "down")
        await one.write([Put("new-1", "New lamp"), Delete("item-1")])
        with pytest.raises(CatalogueError, match="Redis is away"):
            await other.write([Delete("item-2")])
        assert other.version == 0 and (await other.item("item-1")).is_degraded
        await wire.connect()
        await until(lambda: other.status.state == "ready")
        await settled([one, other])
        assert state_of(one) == state_of(other)
        await other.write([Delete("item-2")])
    await wire.cut()


async def test_a_paused_redis_refuses_writes_and_goes_on(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path, 2) as (one, other):
        await one.write([Delete("item-1")])
        pid = clean_redis.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            assert (await asyncio.wait_for(one.item("item-2"), 3)).is_degraded
            with pytest.raises(CatalogueError, match="Redis is away"):
                await one.write([Delete("item-2")])
            assert one.snapshot.resolve(["item-2"])
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(lambda: all(each.status.state == "ready" for each in (one, other)))
        await other.write([Delete("item-2")])
        await one.item("item-2")
        await settled([one, other])
        assert state_of(one) == state_of(other) and one.version == 2


async def test_a_killed_redis_comes_back_with_the_log(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path, 2) as (one, other):
        await one.write([Delete("item-1"), Put("new-1", "New lamp")])
        await asyncio.sleep(1.1)  # appendfsync everysec
        clean_redis.kill()
        await until(lambda: one.status.state == "down" and other.status.state == "down")
        clean_redis.start()
        await until(lambda: one.status.state == "ready" and other.status.state == "ready")
        await other.write([Delete("item-2")])
        await one.item("item-2")
        await settled([one, other])
        assert state_of(one) == state_of(other) and one.version == 2


async def test_a_redis_that_lost_everything_gets_the_changes_back(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path, 2) as (one, other):
        await one.write([Delete("item-1"), Put("new-1", "New lamp")])
        await until(lambda: other.version == 1)
        clean_redis.flush()
        await other.write([Delete("item-2")])
        await one.item("item-2")
        await settled([one, other])
        assert state_of(one) == state_of(other) and one.version == 2
        assert one.snapshot.row_of("new-1") is not None


async def test_a_log_that_went_another_way_is_followed(small_bundle, clean_redis, tmp_path):
    """Redis lost its last second: what it holds now is the truth, also where a replica knew better."""
    async with replicas(small_bundle, clean_redis.url, tmp_path, 2) as (one, other):
        await one.write([Delete("item-1")])
        await one.write([Delete("item-2")])
        await until(lambda: other.version == 2)
        client = connect(clean_redis.url, timeout_s=5)
        keys = LiveKeys(small_bundle.bundle_id)
        [(_, first), _] = await client.xrange(keys.log)
        await client.xdel(keys.log, "2-0")
        await client.set(keys.head, b"1:" + first[b"nonce"])
        await client.aclose()
        assert (await one.item("item-2")).value is not None
        await settled([one])
        with pytest.raises(NotFound):
            await one.write([Delete("item-1")])


async def test_a_failing_engine_keeps_the_catalogue_before(small_bundle, clean_redis, tmp_path, monkeypatch):
    monkeypatch.setattr("service.catalogue.replica.RETRY_S", 0.05)
    async with replicas(small_bundle, clean_redis.url, tmp_path, 1) as (one,):
        one.engine.error = CatalogueError("the trie is damaged")
        before = one.snapshot
        await one.write([Put("new-1", "New lamp"), Delete("item-1")])
        await asyncio.sleep(0.2)
        assert one.snapshot is before and before.hidden_rows.tolist() == [before.row_of("item-1")]
        one.engine.error = None
        await settled([one])
        assert one.snapshot.row_of("new-1") is not None


async def test_everything_deleted_and_put_back(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path, 1) as (one,):
        items = small_bundle.items.to_dicts()
        await one.write([Delete(item["item_id"]) for item in items])
        await settled([one])
        assert one.snapshot.num_items == 0 and (await one.search("", 5)) == []
        import json

        await one.write(
            [
                Put(i["item_id"], i["title"], i["description"], json.loads(i["metadata"]), i["popularity"])
                for i in items
            ]
        )
        await settled([one])
        assert one.snapshot.num_items == 40
        # All but the two that shared a SID have theirs back.
        same = (one.snapshot.semantic_ids[:, None] == small_bundle.semantic_ids[None]).all(-1).any(1)
        assert same.sum() >= 39


async def test_files_of_replicas_are_removed(small_bundle, clean_redis, tmp_path):
    async with replicas(small_bundle, clean_redis.url, tmp_path, 1) as (one,):
        for number in range(6):
            await one.write([Delete(f"item-{number}")])
            await settled([one])
        assert len(list((tmp_path / "0" / "catalogue").glob("*/*-v*"))) <= 3
    assert not list((tmp_path / "0" / "catalogue").iterdir())


def test_a_snapshot_goes_with_the_last_request_that_held_it(small_bundle):
    base = BundleItems(small_bundle)
    new = ItemRecord("new-1", (3, 3, 3), "New lamp", {"colour": "red"}, popularity=1)
    gc.disable()  # large snapshots must not wait for it
    try:
        snapshot = Snapshot(base, {"new-1": new}, {"item-3"}, version=1)
        assert snapshot.filter_rows(snapshot.space.compile({"colour": "red"})).sum() == 11
        assert snapshot.code_words.of((0,)) and snapshot.popularity_rank[snapshot.row_of("new-1")] > 0
        space = snapshot.space
        space.allow([None], [space.compile({"colour": "red"})])
        kept = [weakref.ref(each) for each in (snapshot, space, space.trie)]
        del snapshot, space
        assert [each() for each in kept] == [None, None, None]
    finally:
        gc.enable()
