"""One replica's view of the live catalogue: follows the update log and keeps the engine in step.

Two speeds. What must not be recommended any more is hidden in the decode as soon as the change is read.
What is new needs a new trie: it is built beside, in a thread, handed to the engine, and only then
becomes the snapshot that requests take. Whatever fails on the way leaves the snapshot before in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import redis.asyncio as aioredis

from service.catalogue.bundle_items import BundleItems
from service.catalogue.catalogue_files import CatalogueFiles
from service.catalogue.live_items import LiveItems
from service.catalogue.records import ItemRecord
from service.catalogue.snapshot import Snapshot
from service.catalogue.update_log import FOLD_AFTER, UpdateLog
from service.errors import CatalogueError, EngineError
from service.observability import metrics

RETRY_S = 1.0
MAX_PAUSE_S = 1.0  # between two rebuilds: as long as the one before took, so that half a core is left

log = logging.getLogger(__name__)


class DecodesCatalogue(Protocol):
    """What the replica needs of an engine; see `service.engine.protocol`."""

    async def load_catalogue(self, directory: Path) -> None: ...

    async def hide_rows(self, rows: np.ndarray, trie_version: str) -> None: ...


class Replica:
    """Follows the log of one bundle.

    Args:
        base: the bundle's items.
        update_log: what to follow.
        directory: for the files that the engine reads.
        filter_cache_bytes: see `Snapshot`.

    Attributes:
        live: the newest state of the items.
        snapshot: what requests should decode with.
    """

    def __init__(
        self, base: BundleItems, update_log: UpdateLog, directory: Path, *, filter_cache_bytes: int
    ) -> None:
        self.live = LiveItems(base)
        self.snapshot = Snapshot(base, filter_cache_bytes=filter_cache_bytes)
        self._filter_cache_bytes = filter_cache_bytes
        self.last_rebuild_s = 0.0
        self._base = base
        self._log = update_log
        self._files = CatalogueFiles(directory)
        self._engine: DecodesCatalogue | None = None
        self._in_use = weakref.WeakSet([self.snapshot])  # also those that only requests still hold
        self._since: set[str] = set()  # ids that changed since the snapshot that is being built
        self._reading = asyncio.Lock()
        self._building = asyncio.Lock()
        self._is_dirty = asyncio.Event()
        self._is_shown = asyncio.Condition()

    def attach(self, engine: DecodesCatalogue) -> None:
        """Keep this engine in step from now on."""
        self._engine = engine

    async def catch_up(self, client: aioredis.Redis) -> None:
        """Read the log to its end. Afterwards `live` is what it was at some moment during the call.

        Raises:
            CatalogueError: the log in Redis does not fit together.
            redis.RedisError: Redis cannot be reached.
        """
        async with self._reading:
            for _ in range(3):
                if await self._read_on(client):
                    return
                await self._read_again(client)
        raise CatalogueError(
            "the update log in Redis does not lead on from its folded state; restore Redis from a backup, "
            f"or delete {self._log.keys.head}, {self._log.keys.log} and {self._log.keys.state} to go back "
            "to the bundle's items"
        )

    async def wait(self, client: aioredis.Redis, timeout_ms: int) -> None:
        """Returns as soon as the log has more, or after the timeout."""
        await self._log.wait(client, self.live.head, timeout_ms)

    async def fold_if_long(self, client: aioredis.Redis) -> None:
        """Fold the log once it is long, so that a restart stays short."""
        if await self._log.num_entries(client) >= FOLD_AFTER:
            await self._log.fold(client, self.live.head, list(self.live.dump()))

    async def rebuild_forever(self) -> None:
        """Bring changes into the decode as they come; never returns."""
        while True:
            await self._is_dirty.wait()
            try:
                await self.rebuild()
            except (CatalogueError, EngineError, OSError) as error:
                log.error("the catalogue before stays in use: %s", error)
                metrics.CATALOGUE_REBUILDS.labels(outcome="failed").inc()
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(min(self.last_rebuild_s, MAX_PAUSE_S))

    async def rebuild(self) -> None:
        """Build a snapshot of the newest state, hand it to the engine, and make it current.

        Raises:
            CatalogueError, EngineError, OSError: nothing was changed; call it again.
        """
        async with self._building:
            started = time.monotonic()
            self._is_dirty.clear()
            self._since = set()
            frozen = (dict(self.live.changed), set(self.live.deleted), self.live.head.version)
            try:
                snapshot, directory = await asyncio.to_thread(self._build, *frozen)
                if self._engine is not None and directory is not None:
                    await self._engine.load_catalogue(directory)
            except BaseException:
                self._is_dirty.set()
                raise
            self._install(snapshot)
            self._files.drop_old()
            await self._hide()
            self.last_rebuild_s = time.monotonic() - started
            metrics.CATALOGUE_REBUILDS.labels(outcome="ok").inc()
            metrics.CATALOGUE_REBUILD_SECONDS.observe(self.last_rebuild_s)
        async with self._is_shown:
            self._is_shown.notify_all()

    async def shown(self, version: int) -> None:
        """Wait until the decode knows everything up to a version of the catalogue."""
        async with self._is_shown:
            await self._is_shown.wait_for(lambda: self.snapshot.version >= version)

    def close(self) -> None:
        """Remove the engine's files; call it when the engine is closed."""
        self._files.close()

    async def _read_on(self, client: aioredis.Redis) -> bool:
        """Apply what follows; False if the log does not lead on from here."""
        while (entries := await self._log.read(client, self.live.head)) is not None:
            if not entries:
                return True
            for entry in entries:
                changes = []
                for piece in entry.changes():  # a large commit is parsed piece by piece, applied at once
                    changes += piece
                    await asyncio.sleep(0)
                self.live.apply(changes, entry.head)
                await self._follow(change.item_id for change in changes)
        return False

    async def _read_again(self, client: aioredis.Redis) -> None:
        """Start from the folded state; or, where Redis has lost everything, give it ours."""
        head, dumped = await self._log.folded(client)
        if not head.version and self.live.head.version and not (await self._log.head(client)).version:
            log.warning(
                "Redis has lost the update log; it gets the %d changes known here", self.live.head.version
            )
            await self._log.fold(client, self.live.head, list(self.live.dump()))
            return
        before = {*self.live.changed, *self.live.deleted}
        self.live = LiveItems.load(self._base, dumped, head)
        await self._follow(before | {*self.live.changed, *self.live.deleted})

    async def _follow(self, item_ids: Iterable[str]) -> None:
        """Tell every snapshot in use which of its items are no longer there."""
        is_hidden_anew = False
        for item_id in item_ids:
            self._since.add(item_id)
            for snapshot in self._in_use:
                is_new = self._note(snapshot, item_id)
                is_hidden_anew |= is_new and snapshot is self.snapshot
        self._is_dirty.set()
        if is_hidden_anew:
            await self._hide()

    def _note(self, snapshot: Snapshot, item_id: str) -> bool:
        record = self.live.changed.get(item_id)
        codes = record.codes if record else self.live.codes_of(item_id)
        return snapshot.follow(item_id, codes if record is None or record.is_available else None)

    async def _hide(self) -> None:
        snapshot = self.snapshot
        if self._engine is None or len(snapshot.hidden_rows) == snapshot.num_items:
            return  # an engine cannot search nothing; the recommender leaves these rows out anyway
        # An engine that is away gets them when it is back; until then the recommender leaves them out.
        with contextlib.suppress(EngineError):
            await self._engine.hide_rows(snapshot.hidden_rows, snapshot.trie_version)

    def _build(
        self, changed: dict[str, ItemRecord], deleted: set[str], version: int
    ) -> tuple[Snapshot, Path | None]:
        cache_bytes = self._filter_cache_bytes
        snapshot = Snapshot(self._base, changed, deleted, version, filter_cache_bytes=cache_bytes)
        _ = snapshot.popularity_rank, snapshot.tiers  # here and not in the first request that needs them
        if snapshot.trie is None:
            return snapshot, self._base.bundle.path if snapshot.num_items else None
        return snapshot, self._files.write(snapshot)

    def _install(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._in_use.add(snapshot)
        for item_id in self._since:
            self._note(snapshot, item_id)
