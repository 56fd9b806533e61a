"""What the catalogue hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ItemRef:
    """Where an item stands in the bundle.

    Attributes:
        row: item row, 0-based.
        codes: its semantic ID, length L.
    """

    row: int
    codes: tuple[int, ...]


@dataclass(frozen=True)
class ItemRecord:
    """What is shown of an item.

    Attributes:
        popularity: occurrences in the training sequences.
        description: None where it was not asked for.
    """

    item_id: str
    row: int
    codes: tuple[int, ...]
    title: str
    metadata: dict[str, Any]
    popularity: int
    description: str | None = None


@dataclass(frozen=True)
class Found(Generic[T]):
    """An answer of the catalogue.

    Attributes:
        value: what was asked for.
        is_degraded: True if Redis could not be asked and memory answered instead.
    """

    value: T
    is_degraded: bool
