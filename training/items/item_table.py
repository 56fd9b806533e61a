"""Collect items while they are read, and number them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from training.items.dataset import ITEM_COLUMNS


class ItemTable:
    """Items in the order they were added; the order is the item index everywhere after.

    Attributes:
        index_of: item_id -> index.
    """

    def __init__(self) -> None:
        self.index_of: dict[str, int] = {}
        self._columns: dict[str, list[str]] = {name: [] for name in ITEM_COLUMNS}

    def __len__(self) -> int:
        return len(self.index_of)

    def add(
        self, item_id: str, title: str, description: str = "", metadata: Mapping[str, Any] | None = None
    ) -> int:
        """Add one item that is not there yet, and return its index."""
        assert item_id not in self.index_of, f"item {item_id!r} was added twice"
        index = len(self.index_of)
        self.index_of[item_id] = index
        self._columns["item_id"].append(item_id)
        self._columns["title"].append(title)
        self._columns["description"].append(description)
        self._columns["metadata"].append(json.dumps(metadata or {}, ensure_ascii=False, sort_keys=True))
        return index

    def to_frame(self) -> pl.DataFrame:
        """Columns item_id, title, description, metadata (JSON text)."""
        return pl.DataFrame(self._columns, schema=dict.fromkeys(ITEM_COLUMNS, pl.String))
