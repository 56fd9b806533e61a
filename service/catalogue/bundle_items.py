"""The items of a bundle, in memory and never changed: what live updates are laid over."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import polars as pl

from service.bundle import Bundle
from service.catalogue.records import ItemRecord
from service.decoding.search_space import SearchSpace

SHOWN = ("item_id", "title", "metadata", "popularity")


class BundleItems:
    """Read-only view of a bundle's items, by item row of the bundle.

    Args:
        bundle: an opened bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._items = bundle.items

    @property
    def num_items(self) -> int:
        """N of the bundle."""
        return self.bundle.manifest.num_items

    @property
    def can_change(self) -> bool:
        """Whether SIDs can be packed into 64 bits, which live updates need."""
        return math.prod(self.bundle.manifest.codebook_sizes) < 2**63

    @cached_property
    def space(self) -> SearchSpace:
        """The bundle's trie and attributes, memory-mapped."""
        return SearchSpace.open(self.bundle.path)

    def prepare(self) -> None:
        """Make what the first requests and the first change would wait for: 1 s for a million items."""
        _ = self._ids, self.bundle.popular_rows, self.popularity
        if self.can_change:
            _ = self.keys

    def row_of(self, item_id: str) -> int | None:
        """Item row, or None for an unknown item."""
        return self.bundle.row_of.get(item_id)

    def codes_of(self, row: int) -> tuple[int, ...]:
        """Semantic ID of an item row."""
        return tuple(self.bundle.semantic_ids[row].tolist())

    def pack(self, codes: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
        """SIDs as single numbers in the same order. Shape: (n, L) -> (n,), int64."""
        sizes = self.bundle.manifest.codebook_sizes
        columns = np.asarray(codes).reshape(-1, len(sizes)).T
        keys = np.zeros(columns.shape[1], dtype=np.int64)
        for column, size in zip(columns, sizes, strict=True):
            keys = keys * size + column
        return keys

    @cached_property
    def keys(self) -> np.ndarray:
        """Packed SID of every item row, ascending. Shape: (N,), int64."""
        return self.pack(self.bundle.semantic_ids)

    def rows_with(self, codes: Sequence[int]) -> range:
        """Item rows that carry a semantic ID."""
        key = self.pack([codes])
        first, end = np.searchsorted(self.keys, key, "left"), np.searchsorted(self.keys, key, "right")
        return range(int(first[0]), int(end[0]))

    def record(self, row: int) -> ItemRecord:
        """One item with its description."""
        return self.records([row], with_description=True)[0]

    def records(
        self, rows: Sequence[int] | np.ndarray, *, with_description: bool = False
    ) -> list[ItemRecord]:
        """Records of item rows, in the order asked for.

        Args:
            rows: item rows. Shape: (n,), 0 <= row < N.
            with_description: also read descriptions.
        """
        indices = pl.Series(np.asarray(rows, dtype=np.uint32))
        chosen = self._items.select(*SHOWN, *["description"] * with_description)[indices]
        return [
            ItemRecord(
                item_id=item["item_id"],
                codes=self.codes_of(int(row)),
                title=item["title"],
                metadata=json.loads(item["metadata"] or "{}"),
                popularity=item["popularity"],
                description=item.get("description"),
            )
            for row, item in zip(rows, chosen.iter_rows(named=True), strict=True)
        ]

    @cached_property
    def popularity(self) -> np.ndarray:
        """Popularity of every item row. Shape: (N,), int64."""
        return self._items["popularity"].to_numpy()

    def item_ids(self, rows: np.ndarray) -> list[str]:
        """Ids of item rows. Shape: (n,)."""
        ids = self._ids
        return [ids[row] for row in rows.tolist()]

    @cached_property
    def _ids(self) -> list[str]:
        """Every item's id; the texts are those of `row_of`, and a list answers 10 x sooner than a frame."""
        return list(self.bundle.row_of)

    @cached_property
    def titles(self) -> pl.DataFrame:
        """What is searched: `searchable` of all items, made once."""
        return searchable(self._items["item_id"], self._items["title"], self._items["popularity"])


def searchable(item_ids: Iterable[str], titles: Iterable[str], popularity: Iterable[int]) -> pl.DataFrame:
    """Columns item_id and title in lower case, popularity, and the row."""
    frame = pl.DataFrame(
        {"item_id": item_ids, "title": titles, "popularity": popularity},
        schema={"item_id": pl.String, "title": pl.String, "popularity": pl.Int64},
    )
    lowered = pl.col("item_id", "title").str.to_lowercase()
    return frame.with_columns(lowered).with_row_index("row")


def search(titles: pl.DataFrame, query: str, limit: int) -> pl.DataFrame:
    """Rows whose title holds every word of a query, best first.

    Titles that start with the query come first, then titles where a word starts with it, then the
    rest; within each, popular items first. An item_id that equals the query leads. Reads the whole
    column (about 0.1 s for a million titles), so call it off the event loop.

    Args:
        titles: from `searchable`.
        query: free text, not empty.
        limit: most rows to return.

    Returns:
        Columns row, tier (0 is best), popularity.
    """
    needle = " ".join(query.lower().split())
    title = pl.col("title")
    holds_all = pl.all_horizontal([title.str.contains(word, literal=True) for word in needle.split()])
    is_same = pl.col("item_id") == needle
    tier = (
        pl.when(is_same).then(0)
        .when(title.str.starts_with(needle)).then(1)
        .when(title.str.contains(" " + needle, literal=True)).then(2)
        .otherwise(3)
    )  # fmt: skip
    return (
        titles.lazy()
        .filter(holds_all | is_same)
        .select("row", tier.alias("tier"), "popularity")
        .sort(["tier", "popularity", "row"], descending=[False, True, False])
        .head(limit)
        .collect()
    )
