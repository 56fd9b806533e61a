"""The items: a bundle's in Redis, changes since laid over them, and memory for when Redis is away."""

from service.catalogue.backfill import Backfill
from service.catalogue.catalogue import Catalogue
from service.catalogue.records import Found, ItemRecord, ItemRef
from service.catalogue.selection import Selection
from service.catalogue.snapshot import Snapshot
from service.catalogue.writer import Delete, Operation, Patch, Put, Written

__all__ = [
    "Backfill",
    "Catalogue",
    "Delete",
    "Found",
    "ItemRecord",
    "ItemRef",
    "Operation",
    "Patch",
    "Put",
    "Selection",
    "Snapshot",
    "Written",
]
