"""What the catalogue hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ItemRef:
    """Where an item stands.

    Attributes:
        row: item row in the snapshot that was asked, 0-based; None for an item that can be in a history
            but is not recommended (out of stock, or so new that the decode does not know it yet).
        codes: its semantic ID, length L.
    """

    row: int | None
    codes: tuple[int, ...]


@dataclass(frozen=True)
class ItemRecord:
    """An item.

    Attributes:
        codes: its semantic ID, length L.
        popularity: occurrences in the training sequences, or what the shop said since.
        description: None where it was not asked for.
        is_available: False: known, but not to be recommended (out of stock).
        version: version of the catalogue that changed it last; 0 = as in the bundle.
    """

    item_id: str
    codes: tuple[int, ...]
    title: str
    metadata: dict[str, Any]
    popularity: int
    description: str | None = None
    is_available: bool = True
    version: int = 0


@dataclass(frozen=True)
class Found(Generic[T]):
    """An answer of the catalogue.

    Attributes:
        value: what was asked for.
        is_degraded: True if Redis could not be asked and memory answered instead.
    """

    value: T
    is_degraded: bool
