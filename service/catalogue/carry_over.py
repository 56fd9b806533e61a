"""From one bundle to another: what was changed while the first was served holds under the second too.

The writer is stopped by the same script that moves the pointer, and only if nothing was written since
the changes were carried: a change is in the old log and carried, or in the new one, never in neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import redis.asyncio as aioredis

from service.catalogue import keys
from service.catalogue.catalogue import Catalogue
from service.catalogue.live_items import Change, Head
from service.catalogue.records import ItemRecord
from service.catalogue.update_log import UpdateLog
from service.catalogue.writer import Delete, Operation, Put
from service.errors import CatalogueError

MAX_TRIES = 20
PAUSE_MS = 1_000

# KEYS: the old log's head, its moved, the new log's moved, active bundle, next bundle, the old paused.
# ARGV: the old head that was carried, new bundle_id, new pointer.
_MOVE = """
if (redis.call('GET', KEYS[1]) or '0:') ~= ARGV[1] then return 0 end
if KEYS[2] ~= KEYS[3] then redis.call('SET', KEYS[2], ARGV[2]) end
redis.call('DEL', KEYS[3], KEYS[5], KEYS[6])
redis.call('SET', KEYS[4], ARGV[3])
return 1
"""


async def take_over(client: aioredis.Redis, old_id: str, new: Catalogue, pointer: dict[str, object]) -> None:
    """Carry the changes over and make the new bundle the active one, together.

    Args:
        client: a patient one.
        old_id: the bundle that was active.
        new: the catalogue of the next one, open and ready.
        pointer: what `gtirec:v1:active_bundle` becomes.

    Raises:
        CatalogueError: writers never paused long enough; nothing was moved.
        CannotChange: the new bundle cannot give the changed items semantic IDs.
    """
    old_log = UpdateLog(old_id)
    for place in range(MAX_TRIES):
        if place:  # almost everything is carried: writers wait for the rest
            await client.set(old_log.keys.paused, "1", px=PAUSE_MS)
        head, net = await _net_changes(client, old_log)
        if old_id != new.bundle_id:
            await _carry(client, old_id, net, new, head.version)
        names = [
            old_log.keys.head,
            old_log.keys.moved,
            new.log.keys.moved,
            keys.ACTIVE_BUNDLE,
            keys.NEXT_BUNDLE,
            old_log.keys.paused,
        ]
        if await client.eval(_MOVE, len(names), *names, str(head), new.bundle_id, json.dumps(pointer)):
            return
    raise CatalogueError("the catalogue is changed all the time; activate the bundle in a quieter moment")


async def _net_changes(client: aioredis.Redis, log: UpdateLog) -> tuple[Head, dict[str, Change]]:
    """What all entries of a log come to, by item."""
    while True:
        head, dumped = await log.folded(client)
        net = {value["item_id"]: Change.from_json(value, head.version) for value in dumped}
        while (entries := await log.read(client, head)) is not None:
            if not entries:
                return head, net
            for entry in entries:
                for piece in entry.changes():
                    net |= {change.item_id: change for change in piece}
                head = entry.head


async def _carry(
    client: aioredis.Redis, old_id: str, net: dict[str, Change], new: Catalogue, floor: int
) -> None:
    """Make the new catalogue say the same as the old one about every item that either changed."""
    await new.replica.catch_up(client)
    live = new.replica.live
    gone = await _unknown_to(client, old_id, live.changed.keys() - net.keys())
    known = await live.get_many([*net, *gone])
    operations: list[Operation] = [Delete(item_id) for item_id in gone if item_id in known]
    for item_id, change in net.items():
        before = known.get(item_id)
        if change.record is None:
            if before is not None:
                operations.append(Delete(item_id))
        elif before is None or not _says_the_same(before, change.record):
            operations.append(_put(change.record))
    if operations or live.head.version <= floor:
        await new.write_carried(operations, floor)


async def _unknown_to(client: aioredis.Redis, bundle_id: str, item_ids: Iterable[str]) -> list[str]:
    """Those of the items that are not in a bundle."""
    names, wanted = keys.BundleKeys(bundle_id), sorted(item_ids)
    pipeline = client.pipeline(transaction=False)
    for item_id in wanted:
        pipeline.exists(names.item(item_id))
    found = await pipeline.execute() if wanted else []
    return [item_id for item_id, is_there in zip(wanted, found, strict=True) if not is_there]


def _says_the_same(one: ItemRecord, other: ItemRecord) -> bool:
    def content(record: ItemRecord) -> tuple[object, ...]:
        shown = (record.title, record.description or "", record.metadata)
        return (*shown, record.popularity, record.is_available)

    return content(one) == content(other)


def _put(record: ItemRecord) -> Put:
    return Put(
        record.item_id,
        record.title,
        record.description or "",
        record.metadata,
        record.popularity,
        record.is_available,
    )
