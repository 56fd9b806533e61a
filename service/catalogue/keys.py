"""Every Redis key of the project, in one place.

`gtirec:v1:...` outlives a bundle; `gtirec:b:<bundle_id>:...` is one bundle's catalogue, never changed
once it is complete. Every value is JSON. Item keys carry no hash tag, so that a cluster spreads them.

| key | value |
|---|---|
| `gtirec:v1:active` | {"bundle_id", "loaded_at"}: the catalogue that was completed last |
| `gtirec:v1:previous` | the same, for the one before; kept for rollback |
| `gtirec:b:<id>:meta` | {"num_items", "num_sids", "loaded_at"}: present = complete and verified |
| `gtirec:b:<id>:lock` | {"owner"}: who is loading it; expires |
| `gtirec:b:<id>:item:<item_id>` | {"row", "sid"}: item row in the bundle and its codes |
| `gtirec:b:<id>:sid:<codes>` | [{"row", "item_id", "title", "metadata", "popularity"}], tie-break order |
| `gtirec:b:<id>:text:<item_id>` | {"description"}; only items that have one |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ACTIVE = "gtirec:v1:active"
PREVIOUS = "gtirec:v1:previous"
ALL_BUNDLES = "gtirec:b:*:meta"


@dataclass(frozen=True)
class BundleKeys:
    """Keys of one bundle's catalogue."""

    bundle_id: str

    @property
    def prefix(self) -> str:
        """What all of them start with."""
        return f"gtirec:b:{self.bundle_id}:"

    @property
    def meta(self) -> str:
        """Completeness marker."""
        return f"{self.prefix}meta"

    @property
    def lock(self) -> str:
        """Held by the one replica that loads."""
        return f"{self.prefix}lock"

    def item(self, item_id: str) -> str:
        """Row and SID of an item."""
        return f"{self.prefix}item:{item_id}"

    def sid(self, codes: Iterable[int]) -> str:
        """Items that carry a semantic ID. `codes`: Shape: (L,)."""
        return f"{self.prefix}sid:{'.'.join(str(int(code)) for code in codes)}"

    def text(self, item_id: str) -> str:
        """Description of an item."""
        return f"{self.prefix}text:{item_id}"


def bundle_id_of(meta_key: str) -> str:
    """The bundle_id inside a `meta` key."""
    return meta_key.split(":")[2]
