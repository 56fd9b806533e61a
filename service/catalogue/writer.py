"""Changes to the catalogue: worked out on the newest state, committed if it is still the newest.

All operations of one call become one entry of the update log, so they happen together or not at all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import redis.asyncio as aioredis

from service.catalogue.live_items import Change, Head, LiveItems
from service.catalogue.records import ItemRecord
from service.catalogue.replica import Replica
from service.catalogue.sid_chooser import SidChooser
from service.catalogue.update_log import Carried, Moved, UpdateLog
from service.errors import BundleMoved, CatalogueError, GtirecError, NotFound, VersionConflict

MAX_TRIES = 50
MAX_PAUSE_S = 0.05


@dataclass(frozen=True)
class Put:
    """Make an item what is said here. `popularity` None: what it was, 0 for a new item."""

    item_id: str
    title: str
    description: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    popularity: int | None = None
    is_available: bool = True
    if_version: int | None = None
    only_new: bool = False


@dataclass(frozen=True)
class Patch:
    """Change some of title, description, metadata, popularity and is_available.

    In `metadata` a value of None removes its field; fields that are not named stay.
    """

    item_id: str
    values: dict[str, Any]
    if_version: int | None = None


@dataclass(frozen=True)
class Delete:
    """Take an item out."""

    item_id: str
    if_version: int | None = None


Operation = Put | Patch | Delete
Commit = Callable[[Head, Sequence[Change]], Awaitable[Head | Moved | None]]


@dataclass(frozen=True)
class Written:
    """What a call did.

    Attributes:
        version: of the catalogue that has all of it.
        records: per operation the item as it is now; None where it was deleted or refused.
        is_new: per operation, whether it made an item that was not there.
        refused: place of an operation -> why it was left out.
    """

    version: int
    records: list[ItemRecord | None]
    is_new: list[bool]
    refused: dict[int, GtirecError]


class CatalogueWriter:
    """Writes through one replica.

    Args:
        replica: gives the newest state.
        update_log: takes the changes.
        chooser: gives new items a semantic ID.
    """

    def __init__(self, replica: Replica, update_log: UpdateLog, chooser: SidChooser) -> None:
        self._replica = replica
        self._log = update_log
        self._chooser = chooser
        self._writing = asyncio.Lock()

    async def write(
        self,
        client: aioredis.Redis,
        operations: Sequence[Operation],
        *,
        skip_refused: bool = False,
        names: Sequence[str] = (),
        carried: Carried | None = None,
    ) -> Written:
        """Do all operations, in order, or none.

        Args:
            skip_refused: leave out what cannot be done and say so, instead of doing nothing.
            names: what errors call the operations, in the same order; empty for a single one.
            carried: see `UpdateLog.commit`. With a step they are tried once: what is carried by somebody
                else meanwhile must be worked out again.

        Raises:
            NotFound, VersionConflict, CannotChange: an operation cannot be done; nothing was.
            CatalogueError: too many others write at once, or another bundle took over.
            redis.RedisError: Redis cannot be reached. Whether the commit came through is unknown.
        """
        async with self._writing:
            commit = partial(self._log.commit, client, carried=carried)
            num_tries = 1 if carried and carried.step else MAX_TRIES
            try:
                for _ in range(num_tries):
                    await self._replica.catch_up(client)
                    plan = _Plan(self._replica.live)
                    plan.before = await plan.live.get_many([each.item_id for each in operations])
                    plan.add_all(operations, skip_refused, names)
                    if not plan.wanted and not carried:
                        return plan.written(plan.head.version)
                    if (written := await self._try(plan, commit)) is not None:
                        await self._replica.catch_up(client)
                        return written
                    await asyncio.sleep(random.random() * MAX_PAUSE_S)  # noqa: S311
            finally:
                self._chooser.forget()
        raise CatalogueError(f"{num_tries} times another change came first; try again in a moment")

    async def _try(self, plan: _Plan, commit: Commit) -> Written | None:
        wanted = [record for record in plan.wanted.values() if record is not None]
        codes, assigned = await self._chooser.choose(wanted, plan.before, plan.live)
        plan.wanted |= {
            record.item_id: replace(record, codes=each) for record, each in zip(wanted, codes, strict=True)
        }
        outcome: Head | Moved | None = None
        try:
            outcome = await commit(plan.head, plan.changes())
        finally:
            if not isinstance(outcome, Head):
                self._chooser.release(assigned, plan.live)
        if isinstance(outcome, Moved):
            raise BundleMoved(f"bundle {outcome.bundle_id} took over; send the change again")
        return plan.written(outcome.version) if outcome is not None else None


class _Plan:
    """What the operations come to: the last state of every item they name."""

    def __init__(self, live: LiveItems) -> None:
        self.live, self.head = live, live.head  # the head before anything is read: the commit names it
        self.before: dict[str, ItemRecord] = {}
        self._item_of: list[str | None] = []
        self._is_new: list[bool] = []
        self.wanted: dict[str, ItemRecord | None] = {}
        self.refused: dict[int, GtirecError] = {}

    def add_all(self, operations: Sequence[Operation], skip_refused: bool, names: Sequence[str]) -> None:
        """Take in all operations, or leave out those that cannot be done."""
        for place, operation in enumerate(operations):
            try:
                self.add(operation)
            except (NotFound, VersionConflict) as error:
                if not skip_refused:
                    name = f"{names[place]}: " if names else ""
                    raise type(error)(f"{name}{error}") from error
                self._refuse(error)

    def add(self, operation: Operation) -> None:
        """Take in one operation, on top of those before it."""
        item_id = operation.item_id
        before = self.wanted[item_id] if item_id in self.wanted else self.before.get(item_id)
        _check_version(operation, before)
        if isinstance(operation, Put):
            after: ItemRecord | None = _put(operation, before)
        elif before is None:
            raise NotFound("the catalogue holds no item with this id")
        else:
            after = None if isinstance(operation, Delete) else _patched(operation, before)
        self.wanted[item_id] = after
        self._item_of.append(item_id)
        self._is_new.append(before is None)

    def _refuse(self, error: GtirecError) -> None:
        """Leave one operation out."""
        self.refused[len(self._item_of)] = error
        self._item_of.append(None)
        self._is_new.append(False)

    def changes(self) -> list[Change]:
        """What goes into the log."""
        return [Change(item_id, record) for item_id, record in self.wanted.items()]

    def written(self, version: int) -> Written:
        """The report, once it was committed as `version`."""
        finals = {
            item_id: record and replace(record, version=version) for item_id, record in self.wanted.items()
        }
        records = [None if item_id is None else finals[item_id] for item_id in self._item_of]
        return Written(version, records, self._is_new, self.refused)


def _check_version(operation: Operation, before: ItemRecord | None) -> None:
    if operation.if_version is not None and (before is None or operation.if_version != before.version):
        found = "there is no such item" if before is None else f"the item is at version {before.version}"
        raise VersionConflict(f"{found}, not at version {operation.if_version}; read it again")


def _put(operation: Put, before: ItemRecord | None) -> ItemRecord:
    if operation.only_new and before is not None:
        raise VersionConflict("there is an item with this id already, and only a new one was wanted")
    popularity = operation.popularity
    return ItemRecord(
        item_id=operation.item_id,
        codes=(),  # chosen later
        title=operation.title,
        metadata=operation.metadata,
        popularity=popularity if popularity is not None else before.popularity if before else 0,
        description=operation.description,
        is_available=operation.is_available,
    )


def _patched(operation: Patch, before: ItemRecord) -> ItemRecord:
    values = dict(operation.values)
    if "metadata" in values:
        merged = before.metadata | values["metadata"]
        values["metadata"] = {name: value for name, value in merged.items() if value is not None}
    return replace(before, **values, codes=())
