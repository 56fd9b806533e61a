"""Redis copy of a bundle's items: keys, loading, look-ups, and memory for when Redis is away."""

from service.catalogue.backfill import Backfill
from service.catalogue.catalogue import Catalogue
from service.catalogue.records import Found, ItemRecord, ItemRef

__all__ = ["Backfill", "Catalogue", "Found", "ItemRecord", "ItemRef"]
