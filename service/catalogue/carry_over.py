"""From one bundle to another: what was changed while the first was served holds under the second too.

Two ways. `take_over` makes another bundle the active one: the writer is stopped by the same script that
moves the pointer, and only if nothing was written since the changes were carried, so that a change is in
the old log and carried, or in the new one, never in neither. `mirror` keeps a second bundle in step with
the active one while both are served (an experiment): it may run on any replica at any time, because each
step names the point that it goes on from and is refused if somebody else was there first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import redis.asyncio as aioredis

from service.catalogue import keys
from service.catalogue.catalogue import Catalogue
from service.catalogue.live_items import Change, Head
from service.catalogue.records import ItemRecord
from service.catalogue.update_log import Carried, UpdateLog
from service.catalogue.writer import Delete, Operation, Put
from service.errors import CannotChange, CatalogueError, NotFound

MAX_TRIES = 20
PAUSE_MS = 1_000

# A local function: ends the experiment whose keys it is given, if it is running.
END_EXPERIMENT = """
local function end_experiment(running, all, outcome)
  local text = redis.call('GET', running)
  if not text then return false end
  local experiment = cjson.decode(text)
  experiment['outcome'] = outcome(experiment)
  experiment['ended_at'] = tonumber(redis.call('TIME')[1])
  redis.call('HSET', all, experiment['experiment_id'], cjson.encode(experiment))
  redis.call('DEL', running)
  return true
end
"""

# KEYS: the old log's head, its moved, the new log's moved, active bundle, next bundle, the old paused, the
# running experiment, all experiments. ARGV: the old head that was carried, new bundle_id, new pointer.
_MOVE = (
    END_EXPERIMENT
    + """
if (redis.call('GET', KEYS[1]) or '0:') ~= ARGV[1] then return 0 end
if KEYS[2] ~= KEYS[3] then redis.call('SET', KEYS[2], ARGV[2]) end
redis.call('DEL', KEYS[3], KEYS[5], KEYS[6])
redis.call('SET', KEYS[4], ARGV[3])
end_experiment(KEYS[7], KEYS[8], function(experiment)
  return experiment['b'] == ARGV[2] and 'promoted' or 'replaced'
end)
return 1
"""
)


async def take_over(client: aioredis.Redis, old_id: str, new: Catalogue, pointer: dict[str, object]) -> None:
    """Carry the changes over and make the new bundle the active one, together. Ends an experiment.

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
            keys.EXPERIMENT,
            keys.EXPERIMENTS,
        ]
        if await client.eval(_MOVE, len(names), *names, str(head), new.bundle_id, json.dumps(pointer)):
            return
    raise CatalogueError("the catalogue is changed all the time; activate the bundle in a quieter moment")


async def mirror(client: aioredis.Redis, old: UpdateLog, new: Catalogue) -> None:
    """Make another bundle say the same as the active one about every item that changed.

    Args:
        client: a patient one.
        old: log of the active bundle.
        new: the catalogue of the other one, open and ready.

    Raises:
        CatalogueError: others came first all the time.
        CannotChange: the other bundle cannot give the changed items semantic IDs.
    """
    for _ in range(MAX_TRIES):
        before = await new.log.mirrored(client)
        bundle_id, _, at = before.partition("@")
        start = Head.parse(at) if bundle_id == old.bundle_id else None
        head, net, is_whole = await _changes_since(client, old, start)
        after = f"{old.bundle_id}@{head}"
        if before == after:
            return
        await new.replica.catch_up(client)
        operations = await _operations(client, old.bundle_id, net, new, look_for_gone=is_whole)
        try:
            if not operations and await new.log.step(client, before, after):
                return
            if operations:
                await new.write_carried(operations, Carried(step=(before, after)))
                return
        except CannotChange:
            raise
        except (CatalogueError, NotFound):
            continue  # somebody else carried the same; see what is left
    raise CatalogueError("the changes of the active bundle could not be carried to the other one")


async def _changes_since(
    client: aioredis.Redis, log: UpdateLog, start: Head | None
) -> tuple[Head, dict[str, Change], bool]:
    """What the entries of a log after a point come to; all of them, and True, if it does not lead on
    from there."""
    if start is not None and (found := await _read_on(client, log, start, {})) is not None:
        return *found, False
    return *await _net_changes(client, log), True


async def _net_changes(client: aioredis.Redis, log: UpdateLog) -> tuple[Head, dict[str, Change]]:
    """What all entries of a log come to, by item."""
    while True:
        head, dumped = await log.folded(client)
        net = {value["item_id"]: Change.from_json(value, head.version) for value in dumped}
        if (found := await _read_on(client, log, head, net)) is not None:
            return found


async def _read_on(
    client: aioredis.Redis, log: UpdateLog, head: Head, net: dict[str, Change]
) -> tuple[Head, dict[str, Change]] | None:
    """Add the entries after a point; None if the log does not lead on from there."""
    while (entries := await log.read(client, head)) is not None:
        if not entries:
            return head, net
        for entry in entries:
            for piece in entry.changes():
                net |= {change.item_id: change for change in piece}
            head = entry.head
    return None


async def _carry(
    client: aioredis.Redis, old_id: str, net: dict[str, Change], new: Catalogue, floor: int
) -> None:
    """Make the new catalogue say the same as the old one about every item that either changed."""
    await new.replica.catch_up(client)
    operations = await _operations(client, old_id, net, new, look_for_gone=True)
    if operations or new.replica.live.head.version <= floor:
        await new.write_carried(operations, Carried(above=floor))


async def _operations(
    client: aioredis.Redis, old_id: str, net: dict[str, Change], new: Catalogue, *, look_for_gone: bool
) -> list[Operation]:
    """What the new catalogue lacks of some changes of the old one.

    Args:
        look_for_gone: also delete what only the new one knows because it was added under it.
    """
    live = new.replica.live
    gone = await _unknown_to(client, old_id, live.changed.keys() - net.keys()) if look_for_gone else []
    known = await live.get_many([*net, *gone])
    operations: list[Operation] = [Delete(item_id) for item_id in gone if item_id in known]
    for item_id, change in net.items():
        before = known.get(item_id)
        if change.record is None:
            if before is not None:
                operations.append(Delete(item_id))
        elif before is None or not _says_the_same(before, change.record):
            operations.append(_put(change.record))
    return operations


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
