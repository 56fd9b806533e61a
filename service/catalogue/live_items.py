"""What changed since the bundle was made: the fold of the update log, equal on every replica.

The same changes in the same order give the same state; nothing here asks a clock, Redis or a random
number. It lives on the event loop: changes are applied between two requests.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from service.catalogue.bundle_items import BundleItems
from service.catalogue.records import ItemRecord


@dataclass(frozen=True)
class Change:
    """One item's new state.

    Attributes:
        record: with description; None deletes the item. Its `version` is set when it is applied.
    """

    item_id: str
    record: ItemRecord | None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the update log."""
        if self.record is None:
            return {"item_id": self.item_id}
        record = self.record
        return {
            "item_id": record.item_id,
            "sid": list(record.codes),
            "title": record.title,
            "description": record.description or "",
            "metadata": record.metadata,
            "popularity": record.popularity,
            "available": record.is_available,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], version: int) -> Change:
        """Read what `to_json` made; `version` is the one that the change belongs to."""
        if "sid" not in value:
            return cls(value["item_id"], None)
        return cls(
            value["item_id"],
            ItemRecord(
                item_id=value["item_id"],
                codes=tuple(value["sid"]),
                title=value["title"],
                metadata=value["metadata"],
                popularity=value["popularity"],
                description=value["description"],
                is_available=value["available"],
                version=value.get("version", version),
            ),
        )


@dataclass(frozen=True)
class Head:
    """A point in the update log.

    Attributes:
        version: number of commits before it.
        nonce: made up by the writer of the last one, so that two logs of the same length differ.
    """

    version: int = 0
    nonce: str = ""

    def __str__(self) -> str:
        return f"{self.version}:{self.nonce}"

    @classmethod
    def parse(cls, text: str | bytes | None) -> Head:
        """Read what `str` made; None is the beginning."""
        if text is None:
            return cls()
        version, _, nonce = (text.decode() if isinstance(text, bytes) else text).partition(":")
        return cls(int(version), nonce)


class LiveItems:
    """The newest state of the items.

    Args:
        base: the items of the bundle.

    Attributes:
        head: how far the log has been followed.
        changed: items that are there and not as in the bundle.
        deleted: items of the bundle that are gone.
        touched_sids: SIDs that came into use or out of it; emptied by who keeps an index of them.
    """

    def __init__(self, base: BundleItems) -> None:
        self._base = base
        self.head = Head()
        self.changed: dict[str, ItemRecord] = {}
        self.deleted: set[str] = set()
        # SIDs: how many items hold one now, less how many do in the bundle.
        self._holders: Counter[tuple[int, ...]] = Counter()
        self.touched_sids: set[tuple[int, ...]] = set()

    def get(self, item_id: str) -> ItemRecord | None:
        """An item with its description, or None."""
        if (record := self.changed.get(item_id)) is not None:
            return record
        row = None if item_id in self.deleted else self._base.row_of(item_id)
        return None if row is None else self._base.record(row)

    async def get_many(self, item_ids: Iterable[str]) -> dict[str, ItemRecord]:
        """Those of the items that there are, with their descriptions."""
        wanted = set(item_ids)
        found = {item_id: self.changed[item_id] for item_id in wanted & self.changed.keys()}
        known = (self._base.row_of(item_id) for item_id in wanted - self.deleted - found.keys())
        rows = [row for row in known if row is not None]
        records = await asyncio.to_thread(self._base.records, rows, with_description=True)
        return found | {record.item_id: record for record in records}

    def codes_of(self, item_id: str) -> tuple[int, ...] | None:
        """Semantic ID of an item, or None if there is no such item."""
        if (record := self.changed.get(item_id)) is not None:
            return record.codes
        row = None if item_id in self.deleted else self._base.row_of(item_id)
        return None if row is None else self._base.codes_of(row)

    @property
    def num_items(self) -> int:
        """Items that are there, available or not."""
        added = sum(self._base.row_of(item_id) is None for item_id in self.changed)
        return self._base.num_items - len(self.deleted) + added

    def num_holders(self, codes: Sequence[int]) -> int:
        """How many items have this semantic ID."""
        return len(self._base.rows_with(codes)) + self._holders[tuple(codes)]

    def apply(self, changes: Iterable[Change], head: Head) -> None:
        """Follow the log by one commit."""
        for change in changes:
            self._apply(change)
        self.head = head

    def _apply(self, change: Change) -> None:
        item_id, record = change.item_id, change.record
        if (before := self.codes_of(item_id)) is not None:
            self._count(before, -1)
        self.changed.pop(item_id, None)
        self.deleted.discard(item_id)
        if record is not None:
            self.changed[item_id] = record
            self._count(record.codes, 1)
        elif self._base.row_of(item_id) is not None:
            self.deleted.add(item_id)

    def held_differently(self) -> list[tuple[int, ...]]:
        """SIDs that more or fewer items have than in the bundle."""
        return list(self._holders)

    def _count(self, codes: tuple[int, ...], by: int) -> None:
        self.touched_sids.add(codes)
        self._holders[codes] += by
        if not self._holders[codes]:
            del self._holders[codes]

    def dump(self) -> Iterator[dict[str, Any]]:
        """The state as changes that lead to it from the bundle; see `load`."""
        for item_id in sorted(self.deleted):
            yield Change(item_id, None).to_json()
        for item_id in sorted(self.changed):
            record = self.changed[item_id]
            yield Change(item_id, record).to_json() | {"version": record.version}

    @classmethod
    def load(cls, base: BundleItems, dumped: Iterable[dict[str, Any]], head: Head) -> LiveItems:
        """A state that was dumped at `head`."""
        live = cls(base)
        live.apply((Change.from_json(value, head.version) for value in dumped), head)
        return live

    def digest_lines(self) -> list[str]:
        """The state as sorted lines, for comparing replicas."""
        return [json.dumps(value, sort_keys=True) for value in self.dump()]
