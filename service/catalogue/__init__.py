"""Redis copy of a bundle's items: keys, loading, look-ups, and memory for when Redis is away."""

from service.catalogue.backfill import Backfill
from service.catalogue.catalogue import Catalogue
from service.catalogue.records import Found, ItemRecord, ItemRef
from service.catalogue.selection import FilterRows, Selection

__all__ = ["Backfill", "Catalogue", "FilterRows", "Found", "ItemRecord", "ItemRef", "Selection"]
