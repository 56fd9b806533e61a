"""The catalogue as the rest of the service sees it: the bundle's items in Redis, changes laid over them.

Items of the bundle are read from Redis, and from memory where Redis fails. Changes since the bundle was
made are followed in memory by every replica (`Replica`), so they cost a request nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import redis.asyncio as aioredis

from service.bundle import Bundle
from service.catalogue.bundle_items import BundleItems
from service.catalogue.connection import LOADER_TIMEOUT_S, connect
from service.catalogue.embedded import EmbeddedRedis, find_server_binary
from service.catalogue.keeper import REDIS_FAILURES, CatalogueStatus, RedisKeeper
from service.catalogue.keys import BundleKeys
from service.catalogue.records import Found, ItemRecord
from service.catalogue.replica import DecodesCatalogue, Replica
from service.catalogue.sid_chooser import SidChooser
from service.catalogue.similar import NUM_COMPARED, candidates, cosines
from service.catalogue.snapshot import Snapshot
from service.catalogue.update_log import Carried, UpdateLog
from service.catalogue.writer import CatalogueWriter, Operation, Written
from service.decoding.filters import DEFAULT_CACHE_BYTES
from service.errors import CatalogueError
from service.observability import metrics

WAIT_MS = 2_000  # longest wait for news of the update log
FAILED_S = 1.0

log = logging.getLogger(__name__)


class Catalogue:
    """Items of one bundle, and what became of them since.

    An item that Redis should hold but does not is counted as a miss and read from memory.

    Args:
        bundle: an opened bundle.
        redis_url: URL, or None for a private server in `data_dir`.
        data_dir: see `EmbeddedRedis`; files for the engine stand there too.
        timeout_s: seconds a look-up may take before memory answers.
        filter_cache_bytes: memory for the rows of filters, 1 byte per item each.

    Raises:
        CatalogueError: no URL and no server binary.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        redis_url: str | None,
        data_dir: Path,
        timeout_s: float,
        filter_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.is_embedded = redis_url is None
        embedded = None
        if redis_url is None:
            find_server_binary()
            embedded = EmbeddedRedis(data_dir)
            redis_url = embedded.url
        self.base = BundleItems(bundle)
        self.log = UpdateLog(bundle.bundle_id)
        self.chooser = SidChooser(self.base)
        self.replica = Replica(
            self.base, self.log, data_dir / "catalogue", filter_cache_bytes=filter_cache_bytes
        )
        self._writer = CatalogueWriter(self.replica, self.log, self.chooser)
        self._keys = BundleKeys(bundle.bundle_id)
        self._keeper = RedisKeeper(
            bundle,
            redis_url,
            timeout_s=timeout_s,
            embedded=embedded,
            on_connected=self._prepare,
        )
        self._patient = connect(redis_url, timeout_s=LOADER_TIMEOUT_S)  # waits for news, writes much at once
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def status(self) -> CatalogueStatus:
        """State of the connection."""
        return self._keeper.status

    @property
    def client(self) -> aioredis.Redis | None:
        """The Redis client while Redis is up and the catalogue whole, else None; see `report_loss`."""
        return self._keeper.client

    def report_loss(self, error: BaseException) -> None:
        """Redis failed somebody who uses `client`; it is checked before it is used again."""
        self._keeper.report_loss(error)

    @property
    def snapshot(self) -> Snapshot:
        """What a request should decode with; take it once and keep it for the whole request."""
        return self.replica.snapshot

    @property
    def version(self) -> int:
        """Commits to the catalogue since the bundle was made, as far as this replica knows."""
        return self.replica.live.head.version

    def start(self, engine: DecodesCatalogue | None = None) -> None:
        """Connect, load and follow changes in the background; keep `engine` in step."""
        if engine is not None:
            self.replica.attach(engine)
        self._keeper.start()
        self._tasks = [
            asyncio.create_task(self._follow(), name="catalogue-follow"),
            asyncio.create_task(self.replica.rebuild_forever(), name="catalogue-rebuild"),
        ]

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        while pending := [task for task in self._tasks if not task.done()]:
            for task in pending:  # libraries below may swallow one cancellation
                task.cancel()
            await asyncio.wait(pending, timeout=1)
        await self._patient.aclose()
        await self._keeper.close()
        self.replica.close()

    async def records(self, snapshot: Snapshot, rows: Sequence[int] | np.ndarray) -> Found[list[ItemRecord]]:
        """Records of rows of a snapshot, in the order asked for, as new as they are known. Shape: (n,)."""
        item_ids = snapshot.item_ids(rows)
        known = {item_id: self.replica.live.changed.get(item_id) for item_id in item_ids}
        of_bundle = [
            row for item_id in item_ids if known[item_id] is None and (row := self._row(item_id)) >= 0
        ]
        sid_of = {row: self.base.codes_of(row) for row in of_bundle}
        sids = list(dict.fromkeys(sid_of.values()))
        values = await self._get([self._keys.sid(sid) for sid in sids])
        by_id: dict[str, ItemRecord] = {}
        for sid, items in zip(sids, values or (), strict=values is not None):
            by_id |= {item["item_id"]: _record(sid, item) for item in items or ()}
        ids_of_bundle = self.base.item_ids(np.array(of_bundle, dtype=np.int64))
        if missing := [
            row for row, item_id in zip(of_bundle, ids_of_bundle, strict=True) if item_id not in by_id
        ]:
            if values is not None:
                metrics.CATALOGUE_MISSES.inc(len(missing))
            by_id |= {record.item_id: record for record in self.base.records(missing)}
        found = [known[item_id] or by_id[item_id] for item_id in item_ids]
        return Found(found, values is None)

    async def item(self, item_id: str) -> Found[ItemRecord | None]:
        """One item with its description, or None if there is no such item; every change that was
        acknowledged anywhere before the call is seen."""
        is_degraded = not await self._catch_up()
        live = self.replica.live
        row = self._row(item_id)
        if item_id in live.changed or item_id in live.deleted or row < 0:
            return Found(live.changed.get(item_id), is_degraded)
        # Descriptions stay out of the items under a SID: /recommend would carry hundreds of them.
        codes = self.base.codes_of(row)
        values = await self._get([self._keys.sid(codes), self._keys.text(item_id)])
        stored = [item for item in (values[0] or ()) if item["row"] == row] if values else []
        if values is None or not stored:
            return Found(self.base.record(row), values is None)
        return Found(_record(codes, stored[0], (values[1] or {}).get("description", "")), False)

    async def search(self, query: str, limit: int) -> list[ItemRecord]:
        """Items by title; see `Snapshot.search`. Redis without modules has no text index."""
        snapshot = self.snapshot
        rows = await asyncio.to_thread(snapshot.search, query, limit)
        live = self.replica.live
        records = await live.get_many(item_ids := snapshot.item_ids(rows))
        return [records[item_id] for item_id in item_ids if item_id in records]

    async def similar(self, record: ItemRecord, k: int) -> list[tuple[ItemRecord, int, float | None]]:
        """At most k other items like this one: item, levels of the SID that both share, cosine of the texts
        (None if the bundle has no encoder). Most similar first."""
        snapshot, tokenizer = self.snapshot, await self.chooser.tokenizer_or_none()
        num_wanted = max(NUM_COMPARED, k) + 1 if tokenizer else k + 1
        found = await asyncio.to_thread(candidates, snapshot, record.codes, tokenizer, num_wanted)
        known = await self.replica.live.get_many(ids := snapshot.item_ids([each.row for each in found]))
        others = [
            (known[item_id], each.shared_levels)
            for item_id, each in zip(ids, found, strict=True)
            if item_id != record.item_id and item_id in known
        ]
        if tokenizer is None:
            return [(other, shared, None) for other, shared in others[:k]]
        near = await asyncio.to_thread(cosines, tokenizer, record, [other for other, _ in others])
        order = np.argsort(-near, kind="stable")[:k].tolist()
        return [(*others[place], float(near[place])) for place in order]

    async def write(
        self, operations: Sequence[Operation], *, skip_refused: bool = False, names: Sequence[str] = ()
    ) -> Written:
        """Change items; see `CatalogueWriter.write`. Deletes are out of this replica's decode on return.

        Raises:
            CatalogueError: also if Redis is away.
        """
        if self._keeper.client is None:
            raise CatalogueError(
                "Redis is away, so the catalogue cannot be changed now; reads go on. Try again in a moment"
            )
        try:
            written = await self._writer.write(
                self._patient, operations, skip_refused=skip_refused, names=names
            )
        except REDIS_FAILURES as error:
            self._keeper.report_loss(error)
            raise CatalogueError(
                "Redis was lost while the catalogue was changed, and it is unknown whether the change came "
                "through; read the item, or send the same change again, which does no harm"
            ) from error
        for operation in operations:
            metrics.CATALOGUE_WRITES.labels(operation=type(operation).__name__.lower()).inc()
        return written

    async def write_carried(self, operations: Sequence[Operation], carried: Carried) -> Written:
        """Take over changes from another bundle; see `carry_over`."""
        return await self._writer.write(self._patient, operations, carried=carried)

    @property
    def bundle_id(self) -> str:
        """Of the bundle."""
        return self.base.bundle.bundle_id

    @property
    def patient(self) -> aioredis.Redis:
        """A client with long time-outs, whether Redis is up or not."""
        return self._patient

    def _row(self, item_id: str) -> int:
        row = self.base.row_of(item_id)
        return -1 if row is None else row

    async def _prepare(self, client: aioredis.Redis) -> None:
        await asyncio.to_thread(self.base.prepare)
        await self.replica.catch_up(client)

    async def _follow(self) -> None:
        """Read the update log as it grows, as long as Redis is there."""
        while True:
            if self._keeper.client is None:
                await asyncio.sleep(0.05)
                continue
            try:
                await self.replica.wait(self._patient, WAIT_MS)
                await self.replica.catch_up(self._patient)
                await self.replica.fold_if_long(self._patient)
            except REDIS_FAILURES as error:
                self._keeper.report_loss(error)
            except Exception as error:
                log.error("the update log cannot be followed: %s", error, exc_info=True)
                await asyncio.sleep(FAILED_S)

    async def _catch_up(self) -> bool:
        """False if Redis cannot be asked."""
        if self._keeper.client is None:
            return False
        try:
            await self.replica.catch_up(self._keeper.client)
        except REDIS_FAILURES as error:
            self._keeper.report_loss(error)
            return False
        return True

    async def _get(self, keys: list[str]) -> list[Any] | None:
        """Values of keys in one round trip, None for each that is missing; None if Redis is away."""
        client = self._keeper.client
        if client is None:
            return None
        if not keys:
            return []
        try:
            # One command: of a pipeline redis-py parses every answer by itself, at 0.04 ms each.
            return [None if value is None else json.loads(value) for value in await client.mget(keys)]
        except REDIS_FAILURES as error:
            self._keeper.report_loss(error)
            return None


def _record(codes: tuple[int, ...], item: dict[str, Any], description: str | None = None) -> ItemRecord:
    shown = {name: value for name, value in item.items() if name != "row"}
    return ItemRecord(codes=codes, description=description, **shown)
