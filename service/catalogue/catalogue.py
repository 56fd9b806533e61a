"""The catalogue as the request path sees it: Redis first, memory where Redis fails."""

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
from service.catalogue.embedded import EmbeddedRedis, find_server_binary
from service.catalogue.keeper import REDIS_FAILURES, CatalogueStatus, RedisKeeper
from service.catalogue.keys import BundleKeys
from service.catalogue.records import Found, ItemRecord, ItemRef
from service.catalogue.snapshot import Snapshot
from service.observability import metrics

log = logging.getLogger(__name__)


class Catalogue:
    """Items of one bundle. Every method is one pipelined round trip (`item`: two).

    An item that Redis should hold but does not is counted as a miss and read from memory.

    Args:
        bundle: an opened bundle.
        redis_url: URL, or None for a private server in `data_dir`.
        data_dir: see `EmbeddedRedis`.
        timeout_s: seconds a look-up may take before memory answers.

    Raises:
        CatalogueError: no URL and no server binary.
    """

    def __init__(self, bundle: Bundle, *, redis_url: str | None, data_dir: Path, timeout_s: float) -> None:
        self.is_embedded = redis_url is None
        embedded = None
        if redis_url is None:
            find_server_binary()
            embedded = EmbeddedRedis(data_dir)
            redis_url = embedded.url
        self._bundle = bundle
        self._keys = BundleKeys(bundle.bundle_id)
        self._snapshot = Snapshot(bundle)
        self._keeper = RedisKeeper(
            bundle, redis_url, timeout_s=timeout_s, embedded=embedded, on_change=_count_status
        )

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

    def start(self) -> None:
        """Connect and load in the background."""
        self._keeper.start()

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        await self._keeper.close()

    async def resolve(self, item_ids: Sequence[str]) -> Found[dict[str, ItemRef]]:
        """Rows and SIDs of the known ones among `item_ids`."""
        wanted = list(dict.fromkeys(item_ids))
        values = await self._get([self._keys.item(item_id) for item_id in wanted])
        if values is None:
            return Found(self._snapshot.resolve(wanted), True)
        refs, missing = {}, []
        for item_id, value in zip(wanted, values, strict=True):
            if value is None:
                missing.append(item_id)
            else:
                refs[item_id] = ItemRef(value["row"], tuple(value["sid"]))
        if missing and (known := self._snapshot.resolve(missing)):
            metrics.CATALOGUE_MISSES.inc(len(known))
            refs |= known
        return Found(refs, False)

    async def records(self, rows: Sequence[int] | np.ndarray) -> Found[list[ItemRecord]]:
        """Records of item rows, in the order asked for. Shape of rows: (n,)."""
        rows = [int(row) for row in rows]
        sid_of = {row: self._snapshot.codes_of(row) for row in rows}
        sids = list(dict.fromkeys(sid_of.values()))
        values = await self._get([self._keys.sid(sid) for sid in sids])
        if values is None:
            return Found(self._snapshot.records(rows), True)
        by_row: dict[int, ItemRecord] = {}
        for sid, items in zip(sids, values, strict=True):
            by_row |= {item["row"]: ItemRecord(codes=sid, **item) for item in items or ()}
        if missing := [row for row in rows if row not in by_row]:
            metrics.CATALOGUE_MISSES.inc(len(missing))
            by_row |= {record.row: record for record in self._snapshot.records(missing)}
        return Found([by_row[row] for row in rows], False)

    async def item(self, item_id: str) -> Found[ItemRecord | None]:
        """One item with its description, or None if there is no such item."""
        found = await self.resolve([item_id])
        if (ref := found.value.get(item_id)) is None:
            return Found(None, found.is_degraded)
        # Descriptions stay out of the items under a SID: /recommend would carry hundreds of them.
        values = await self._get([self._keys.sid(ref.codes), self._keys.text(item_id)])
        stored = [item for item in (values[0] or ()) if item["row"] == ref.row] if values else []
        if values is None or not stored:
            return Found(self._snapshot.records([ref.row], with_description=True)[0], values is None)
        description = (values[1] or {}).get("description", "")
        return Found(ItemRecord(codes=ref.codes, description=description, **stored[0]), False)

    async def search(self, query: str, limit: int) -> list[ItemRecord]:
        """Items by title; see `Snapshot.search`. Redis without modules has no text index."""
        return await asyncio.to_thread(self._snapshot.search, query, limit)

    async def _get(self, keys: list[str]) -> list[Any] | None:
        """Values of keys in one round trip, None for each that is missing; None if Redis is away."""
        client = self._keeper.client
        if client is None:
            return None
        if not keys:
            return []
        try:
            # Single GETs and no MGET: in a cluster the keys lie on several nodes.
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.get(key)
            return [None if value is None else json.loads(value) for value in await pipeline.execute()]
        except REDIS_FAILURES as error:
            self._keeper.report_loss(error)
            return None


def _count_status(status: CatalogueStatus) -> None:
    metrics.CATALOGUE_UP.set(status.state == "ready")
