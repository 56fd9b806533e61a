"""Bring a bundle's catalogue into Redis: fill, verify, then flip one pointer.

Keys are named by bundle_id and their values follow from the bundle alone, so filling twice writes the
same bytes: a loader that dies half-way, or two at once, do no harm. Of several replicas that start
together one fills and the others wait for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import redis.asyncio as aioredis
from redis.asyncio.client import Pipeline

from service.bundle import Bundle
from service.catalogue import keys
from service.catalogue.keys import BundleKeys
from service.errors import CatalogueError

CHUNK_ITEMS = 2_000
LOCK_S = 30  # renewed with every chunk
POLL_S = 0.2

Progress = Callable[[int, int], None]  # (items done, items in all)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What `load` did.

    Attributes:
        num_items, num_sids: verified to be in Redis.
        was_loaded: True if the catalogue was there already and only the counts were checked.
        seconds: wall-clock time.
    """

    bundle_id: str
    num_items: int
    num_sids: int
    was_loaded: bool
    seconds: float


class Loader:
    """Loads one bundle.

    Args:
        client: Redis; its time-outs should be generous (`connection.LOADER_TIMEOUT_S`).
        bundle: an opened bundle.
        on_progress: called after every chunk.
    """

    def __init__(
        self, client: aioredis.Redis, bundle: Bundle, on_progress: Progress = lambda done, total: None
    ) -> None:
        self._client = client
        self._bundle = bundle
        self._keys = BundleKeys(bundle.bundle_id)
        self._on_progress = on_progress
        self._owner = uuid.uuid4().hex

    async def load(self) -> LoadReport:
        """Make sure that the whole catalogue is in Redis and is the active one.

        Raises:
            CatalogueError: counts do not match after loading (memory limit, eviction, another writer).
            redis.RedisError: Redis cannot be reached.
        """
        started = time.monotonic()
        while True:
            was_loaded = await self._client.exists(self._keys.meta) and await self._is_complete()
            if was_loaded or await self._take_lock():
                break
            await asyncio.sleep(POLL_S)
        try:
            if not was_loaded:
                await self._fill()
                if not await self._is_complete():
                    raise CatalogueError(
                        f"Redis lost items of bundle {self._bundle.bundle_id} while they were loaded; "
                        "raise its maxmemory or set maxmemory-policy to noeviction"
                    )
            await self._flip()
        finally:
            await self._release_lock()
        seconds = time.monotonic() - started
        num_items = self._bundle.manifest.num_items
        return LoadReport(self._bundle.bundle_id, num_items, len(self._sid_starts), bool(was_loaded), seconds)

    async def _take_lock(self) -> bool:
        return bool(await self._client.set(self._keys.lock, self._lock_value(), nx=True, ex=LOCK_S))

    async def _release_lock(self) -> None:
        """Only our own. A lock that changes hands between the two commands costs a second loader some
        work, never correctness."""
        if await self._client.get(self._keys.lock) == self._lock_value().encode():
            await self._client.delete(self._keys.lock)

    def _lock_value(self) -> str:
        return json.dumps({"owner": self._owner})

    async def _fill(self) -> None:
        total, done = self._bundle.manifest.num_items, 0
        log.info("loading the catalogue of bundle %s, %d items", self._bundle.bundle_id, total)
        for first_row, end_row in self._chunks():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.set(self._keys.lock, self._lock_value(), ex=LOCK_S)
            for key, value in self._entries(first_row, end_row):
                pipeline.set(key, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
            await pipeline.execute()
            done = end_row
            self._on_progress(done, total)

    async def _is_complete(self) -> bool:
        """Count every key that must be there; 1 round trip per chunk."""
        for first_row, end_row in self._chunks():
            expected = self._expected_keys(first_row, end_row)
            if await self._client.exists(*expected) != len(expected):
                return False
        return True

    async def _flip(self) -> None:
        """Mark complete and make active, in one transaction."""
        now = time.time()
        num_items = self._bundle.manifest.num_items
        meta = {"num_items": num_items, "num_sids": len(self._sid_starts), "loaded_at": now}
        pointer = {"bundle_id": self._bundle.bundle_id, "loaded_at": now}

        async def transaction(pipeline: Pipeline) -> None:
            active = await pipeline.get(keys.ACTIVE)
            pipeline.multi()
            pipeline.set(self._keys.meta, json.dumps(meta), nx=True)
            if active is None or json.loads(active)["bundle_id"] != self._bundle.bundle_id:
                if active is not None:
                    pipeline.set(keys.PREVIOUS, active)
                pipeline.set(keys.ACTIVE, json.dumps(pointer))

        await self._client.transaction(transaction, keys.ACTIVE)  # starts again if another one flips

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of about `CHUNK_ITEMS` item rows that never part the items of one SID."""
        ends = np.append(self._sid_starts[1:], self._bundle.manifest.num_items)
        first = 0
        while first < self._bundle.manifest.num_items:
            end = int(ends[min(np.searchsorted(ends, first + CHUNK_ITEMS), len(ends) - 1)])
            yield first, end
            first = end

    def _entries(self, first_row: int, end_row: int) -> Iterator[tuple[str, Any]]:
        """Keys and values of a range of item rows."""
        codes = self._bundle.semantic_ids[first_row:end_row].tolist()
        rows = self._bundle.items[first_row:end_row].iter_rows(named=True)
        group: list[dict[str, Any]] = []
        for offset, item in enumerate(rows):
            sid, item_id = codes[offset], item["item_id"]
            yield self._keys.item(item_id), {"row": first_row + offset, "sid": sid}
            if item["description"]:
                yield self._keys.text(item_id), {"description": item["description"]}
            shown = {name: item[name] for name in ("item_id", "title", "popularity")}
            group.append(
                {"row": first_row + offset, **shown, "metadata": json.loads(item["metadata"] or "{}")}
            )
            if offset + 1 == len(codes) or codes[offset + 1] != sid:
                yield self._keys.sid(sid), group
                group = []

    def _expected_keys(self, first_row: int, end_row: int) -> list[str]:
        """The keys of `_entries`, without reading the items' contents."""
        items = self._bundle.items[first_row:end_row]
        expected = [self._keys.item(item_id) for item_id in items["item_id"]]
        described = items.filter(items["description"].str.len_bytes() > 0)
        expected += [self._keys.text(item_id) for item_id in described["item_id"]]
        sids = np.unique(self._bundle.semantic_ids[first_row:end_row], axis=0)
        return expected + [self._keys.sid(sid) for sid in sids.tolist()]

    @cached_property
    def _sid_starts(self) -> np.ndarray:
        """First item row of every distinct SID. Shape: (num_sids,), int64."""
        codes = self._bundle.semantic_ids
        changes = (codes[1:] != codes[:-1]).any(axis=1)
        return np.concatenate([[0], np.flatnonzero(changes) + 1])


async def prune(client: aioredis.Redis) -> list[str]:
    """Delete every catalogue, with its changes, but those that are active or could be rolled back to.

    Returns:
        The bundle_ids that were deleted. Replicas that still serve one of them answer from memory.
    """
    named = await client.mget(keys.ACTIVE, keys.PREVIOUS, keys.ACTIVE_BUNDLE, keys.NEXT_BUNDLE)
    pointers = [json.loads(value) for value in named if value]
    kept = {pointer["bundle_id"] for pointer in pointers} | {each.get("previous") for each in pointers}
    found = [keys.bundle_id_of(key.decode()) async for key in client.scan_iter(keys.ALL_BUNDLES)]
    dropped = sorted(set(found) - kept)
    for bundle_id in dropped:
        bundle_keys = BundleKeys(bundle_id)
        await client.delete(bundle_keys.meta)  # first, so that a half-deleted one never counts as complete
        batch: list[bytes] = []
        async for key in client.scan_iter(bundle_keys.prefix + "*", count=CHUNK_ITEMS):
            batch.append(key)
            if len(batch) >= CHUNK_ITEMS:
                await client.unlink(*batch)
                batch = []
        if batch:
            await client.unlink(*batch)
    return dropped
