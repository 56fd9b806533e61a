"""The catalogue in memory, straight from the bundle: answers while Redis is away, and searches titles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import polars as pl

from service.bundle import Bundle
from service.catalogue.records import ItemRecord, ItemRef


class Snapshot:
    """Read-only view of a bundle's items.

    Args:
        bundle: an opened bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._items = bundle.items

    def resolve(self, item_ids: Iterable[str]) -> dict[str, ItemRef]:
        """Rows and SIDs of the known ones among `item_ids`."""
        row_of = self._bundle.row_of
        rows = {item_id: row for item_id in item_ids if (row := row_of.get(item_id)) is not None}
        return {item_id: ItemRef(row, self.codes_of(row)) for item_id, row in rows.items()}

    def codes_of(self, row: int) -> tuple[int, ...]:
        """Semantic ID of an item row."""
        return tuple(int(code) for code in self._bundle.semantic_ids[row])

    def records(
        self, rows: Sequence[int] | np.ndarray, *, with_description: bool = False
    ) -> list[ItemRecord]:
        """Records of item rows, in the order asked for.

        Args:
            rows: item rows. Shape: (n,), 0 <= row < N.
            with_description: also read descriptions.
        """
        columns = ["item_id", "title", "metadata", "popularity"] + ["description"] * with_description
        indices = pl.Series(np.asarray(rows, dtype=np.uint32))
        chosen = self._items.select(columns)[indices]
        return [
            ItemRecord(
                item_id=item["item_id"],
                row=int(row),
                codes=self.codes_of(int(row)),
                title=item["title"],
                metadata=json.loads(item["metadata"] or "{}"),
                popularity=item["popularity"],
                description=item.get("description"),
            )
            for row, item in zip(rows, chosen.iter_rows(named=True), strict=True)
        ]

    def search(self, query: str, limit: int) -> list[ItemRecord]:
        """Items whose title holds every word of the query, best first.

        Titles that start with the query come first, then titles where a word starts with it, then the
        rest; within each, popular items first. An item_id that equals the query leads. An empty query
        gives the most popular items. Reads the whole column (about 0.1 s for a million titles), so call
        it off the event loop.

        Args:
            query: free text.
            limit: most items to return, >= 1.
        """
        needle = " ".join(query.lower().split())
        if not needle:
            return self.records(self._bundle.popular_rows[:limit])
        title = pl.col("title")
        holds_all = pl.all_horizontal([title.str.contains(word, literal=True) for word in needle.split()])
        is_same = self._items["item_id"].str.to_lowercase() == needle
        tier = (
            pl.when(pl.col("is_same")).then(0)
            .when(title.str.starts_with(needle)).then(1)
            .when(title.str.contains(" " + needle, literal=True)).then(2)
            .otherwise(3)
        )  # fmt: skip
        found = (
            self._titles.with_columns(is_same.alias("is_same"))
            .lazy()
            .filter(holds_all | pl.col("is_same"))
            .select("row", tier.alias("tier"), "popularity")
            .sort(["tier", "popularity", "row"], descending=[False, True, False])
            .head(limit)
            .collect()
        )
        return self.records(found["row"].to_numpy())

    @cached_property
    def _titles(self) -> pl.DataFrame:
        lowered = self._items.select(pl.col("title").str.to_lowercase(), "popularity")
        return lowered.with_row_index("row")
