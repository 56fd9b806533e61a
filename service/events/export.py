"""`python -m service export-events`: what users did since, as the files that training reads.

items.jsonl holds the catalogue as it is now, live changes included; interactions.csv the events, so
that `items.source = "own"` closes the loop from serving back to training.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import redis.asyncio as aioredis
from rich.console import Console

from service.bundle import Bundle, load_bundle
from service.catalogue.bundle_items import BundleItems
from service.catalogue.commands import redis_of
from service.catalogue.live_items import LiveItems
from service.catalogue.records import ItemRecord
from service.catalogue.update_log import UpdateLog
from service.events.store import all_events
from service.settings import Settings

ITEMS, INTERACTIONS = "items.jsonl", "interactions.csv"
BATCH = 10_000


async def export(settings: Settings, directory: Path, kinds: Collection[str]) -> dict[str, int]:
    """Write both files into a directory; each appears whole or not at all. Prints one JSON line.

    Args:
        settings: name the bundle and Redis.
        directory: made if missing.
        kinds: which events to write.

    Returns:
        Counts of items, users and interactions written, and of events left out because their item is
        no longer in the catalogue.

    Raises:
        BundleError, CatalogueError: with a sentence.
    """
    bundle = load_bundle(settings.bundle, verify=settings.verify_bundle)
    directory.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter(items=0, users=0, interactions=0, unknown_items=0)
    async with redis_of(settings) as client:
        live = await _live_items(client, bundle)
        with _whole(directory / ITEMS) as file:
            for record in _records(live, bundle):
                print(json.dumps(_item(record)), file=file)
                counts["items"] += 1
        with _whole(directory / INTERACTIONS) as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["user_id", "item_id", "timestamp", "event"])
            async for events in all_events(client):
                known = [event for event in events if event.kind in kinds]
                usable = [event for event in known if live.codes_of(event.item_id) is not None]
                for event in usable:
                    moment = datetime.fromtimestamp(event.timestamp, UTC).isoformat()
                    rows.writerow([event.user_id, event.item_id, moment, event.kind])
                counts["users"] += bool(usable)
                counts["interactions"] += len(usable)
                counts["unknown_items"] += len(known) - len(usable)
    Console().print(json.dumps({"export": str(directory), **counts}), soft_wrap=True, highlight=False)
    return dict(counts)


async def _live_items(client: aioredis.Redis, bundle: Bundle) -> LiveItems:
    """The catalogue as the log has it."""
    log, base = UpdateLog(bundle.bundle_id), BundleItems(bundle)
    while True:
        head, dumped = await log.folded(client)
        live = LiveItems.load(base, dumped, head)
        while entries := await log.read(client, live.head):
            for entry in entries:
                for changes in entry.changes():
                    live.apply(changes, entry.head)
        if entries is not None:  # else it was folded meanwhile: again, from the new fold
            return live


def _records(live: LiveItems, bundle: Bundle) -> Iterator[ItemRecord]:
    base = BundleItems(bundle)
    for start in range(0, base.num_items, BATCH):
        rows = range(start, min(start + BATCH, base.num_items))
        for record in base.records(rows, with_description=True):
            if record.item_id not in live.changed and record.item_id not in live.deleted:
                yield record
    yield from live.changed.values()


def _item(record: ItemRecord) -> dict[str, Any]:
    return {
        "item_id": record.item_id,
        "title": record.title,
        "description": record.description or "",
        "metadata": record.metadata,
    }


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name when it is complete and on the disk."""
    part = path.with_suffix(f"{path.suffix}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
