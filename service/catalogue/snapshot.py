"""One version of the catalogue, frozen: item rows sorted by SID, as one decode sees them.

A request takes one snapshot at its start and keeps it, so that rows mean the same items from the prompt
to the answer, whatever is exchanged meanwhile. The bundle's items are not copied: a row points into the
bundle or into the changed items. Nothing in a snapshot points back at it: a large one must go the moment the
last request lets go of it, and not when the garbage collector next comes by.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import polars as pl

from service.catalogue.bundle_items import BundleItems, search, searchable
from service.catalogue.code_words import CodeWords
from service.catalogue.live_attributes import with_changed
from service.catalogue.records import ItemRecord, ItemRef
from service.catalogue.selection import FilterRows
from service.catalogue.tiers import tiers_of
from service.decoding.filters import DEFAULT_CACHE_BYTES
from service.decoding.search_space import SearchSpace
from service.decoding.trie import Trie


class Snapshot:
    """Items that can be recommended, by row. N_b items of the bundle, N rows of the snapshot.

    Args:
        base: the bundle's items.
        changed: items that are not as in the bundle.
        deleted: items of the bundle that are gone.
        version: of the catalogue.
        filter_cache_bytes: memory for the rows of filters, 1 byte per item each.

    Attributes:
        semantic_ids: codes of every row. Shape: (N, L), the bundle's dtype.
        origin: where the item of a row comes from: row n of the bundle, or N_b + n for the n-th changed
            item. Shape: (N,), int64.
        trie: over `semantic_ids`; None as long as it is the bundle's own, or if there are no rows.
        space: the trie with the attributes that items can be filtered by; the bundle's if there are no rows.
    """

    def __init__(
        self,
        base: BundleItems,
        changed: Mapping[str, ItemRecord] | None = None,
        deleted: Iterable[str] = (),
        version: int = 0,
        *,
        filter_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.base = base
        self.version = version
        self._changed = dict(changed or {})
        self._shown = [record for record in self._changed.values() if record.is_available]
        self._hidden: set[int] = set()
        self.trie: Trie | None = None
        self.trie_version = base.bundle.manifest.trie_version
        self.semantic_ids = base.bundle.semantic_ids
        self.origin = np.arange(base.num_items)
        touched = [row for item_id in (*self._changed, *deleted) if (row := base.row_of(item_id)) is not None]
        if touched or self._shown:
            self._arrange(np.array(sorted(touched), dtype=np.int64))
        self.space = base.space
        if self.trie is not None:
            attributes = (
                with_changed(base.space.attributes, self._shown) if self._shown else base.space.attributes
            )
            self.space = SearchSpace(self.trie, attributes[self.origin])
        space, num_items = self.space, self.num_items
        self.filter_rows = FilterRows(
            lambda canonical: space.rows_of(canonical)[:num_items], filter_cache_bytes
        )
        self._row_of_bundle_row = np.full(base.num_items, -1, dtype=np.int32)
        is_base = self.origin < base.num_items
        self._row_of_bundle_row[self.origin[is_base]] = np.flatnonzero(is_base)
        self._row_of_changed = {
            self._shown[int(self.origin[row]) - base.num_items].item_id: int(row)
            for row in np.flatnonzero(~is_base)
        }

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.origin)

    @cached_property
    def hidden_rows(self) -> np.ndarray:
        """Rows that must not be recommended any more, sorted: the one thing that still changes here."""
        return np.array(sorted(self._hidden), dtype=np.int64)

    def follow(self, item_id: str, codes: tuple[int, ...] | None) -> bool:
        """Note an item's newest state.

        Args:
            codes: its semantic ID; None if it is gone or not available.

        Returns:
            True if it changed `hidden_rows`.
        """
        row = self.row_of(item_id)
        is_hidden = row is not None and codes != self.codes_of(row)
        if row is None or is_hidden == (row in self._hidden):
            return False
        (self._hidden.add if is_hidden else self._hidden.discard)(row)
        self.__dict__.pop("hidden_rows", None)
        return True

    def row_of(self, item_id: str) -> int | None:
        """Row of an item, None if it is unknown or cannot be recommended."""
        if item_id in self._changed:
            return self._row_of_changed.get(item_id)
        bundle_row = self.base.row_of(item_id)
        row = -1 if bundle_row is None else int(self._row_of_bundle_row[bundle_row])
        return None if row < 0 else row

    def codes_of(self, row: int) -> tuple[int, ...]:
        """Semantic ID of a row."""
        return tuple(self.semantic_ids[row].tolist())

    def resolve(self, item_ids: Iterable[str]) -> dict[str, ItemRef]:
        """Rows and SIDs of the known ones among `item_ids`."""
        found = {}
        for item_id in item_ids:
            row = self.row_of(item_id)
            if row is not None:
                found[item_id] = ItemRef(row, self.codes_of(row))
            elif (record := self._changed.get(item_id)) is not None:
                found[item_id] = ItemRef(None, record.codes)
        return found

    def knows(self, item_id: str) -> bool:
        """True for an item that `resolve` finds."""
        return item_id in self._changed or self.row_of(item_id) is not None

    def bundle_rows(self, item_ids: Iterable[str]) -> np.ndarray:
        """Rows that items have in the bundle, -1 for those that came later. Shape: (n,), int64."""
        rows = (self.base.row_of(item_id) for item_id in item_ids)
        return np.array([-1 if row is None else row for row in rows], dtype=np.int64)

    def item_ids(self, rows: Iterable[int] | np.ndarray) -> list[str]:
        """Ids of rows, in the order asked for."""
        origins = self.origin[np.asarray(rows, dtype=np.int64)]
        num_base = self.base.num_items
        of_bundle = iter(self.base.item_ids(origins[origins < num_base]))
        return [
            next(of_bundle) if origin < num_base else self._shown[origin - num_base].item_id
            for origin in origins.tolist()
        ]

    def lowered_titles(self, rows: np.ndarray) -> list[str]:
        """Titles of rows in lower case. Shape: (n,), int64."""
        origins, num_base = self.origin[rows], self.base.num_items
        is_base = origins < num_base
        of_bundle = iter(self.base.titles["title"].gather(origins[is_base]).to_list())
        return [
            next(of_bundle) if origin < num_base else self._shown[origin - num_base].title.lower()
            for origin in origins.tolist()
        ]

    @cached_property
    def code_words(self) -> CodeWords:
        """What the codes mean in this version."""
        of = weakref.proxy(self)
        return CodeWords(
            self.num_items, lambda rows: of.lowered_titles(rows), lambda prefix: of.rows_under(prefix)
        )

    @cached_property
    def popular_rows(self) -> np.ndarray:
        """Rows by popularity, descending; ties: the bundle's items first, then by item_id. Shape: (N,)."""
        bundle_rows = self.base.bundle.popular_rows
        rows = self._row_of_bundle_row[bundle_rows].astype(np.int64)
        bundle_rows, rows = bundle_rows[rows >= 0], rows[rows >= 0]
        added = sorted(self._shown, key=lambda record: (-record.popularity, record.item_id))
        popularity = self.base.popularity[bundle_rows]
        places = np.searchsorted(-popularity, [-record.popularity for record in added], "right")
        return np.insert(rows, places, [self._row_of_changed[record.item_id] for record in added])

    def rows_under(self, prefix: Sequence[int]) -> tuple[int, int]:
        """Range of rows whose SID starts with `prefix`."""
        start, end = 0, self.num_items
        for level, code in enumerate(prefix):
            column = self.semantic_ids[start:end, level]
            left, right = np.searchsorted(column, code, "left"), np.searchsorted(column, code, "right")
            start, end = start + int(left), start + int(right)
        return start, end

    @cached_property
    def popularity_rank(self) -> np.ndarray:
        """Place of every row in the popular list, 0 = most popular. Shape: (N,), int64."""
        rank = np.empty(self.num_items, dtype=np.int64)
        rank[self.popular_rows] = np.arange(self.num_items)
        return rank

    @cached_property
    def tiers(self) -> np.ndarray:
        """Popularity tier of every row; see `service.catalogue.tiers`. Shape: (N,), uint8."""
        shown = np.array([record.popularity for record in self._shown], dtype=np.int64)
        return tiers_of(np.concatenate([self.base.popularity, shown])[self.origin])

    def search(self, query: str, limit: int) -> list[int]:
        """Rows whose title holds every word of the query, best first; see `bundle_items.search`.

        Args:
            query: free text; empty gives the most popular items.
            limit: most rows to return, >= 1.
        """
        if not query.split():
            rows = self.popular_rows[: limit + len(self.hidden_rows)]
            return rows[~np.isin(rows, self.hidden_rows)][:limit].tolist()
        num_gone = self.base.num_items - int((self._row_of_bundle_row >= 0).sum())
        found: list[tuple[int, int, int]] = []
        for tier, popularity, bundle_row in _ranked(search(self.base.titles, query, limit + num_gone)):
            found.append((tier, -popularity, int(self._row_of_bundle_row[bundle_row])))
        for tier, popularity, place in _ranked(search(self._shown_titles, query, limit)):
            found.append((tier, -popularity, self._row_of_changed[self._shown[place].item_id]))
        rows = [row for _, _, row in sorted(found) if row >= 0 and row not in self._hidden]
        return rows[:limit]

    @cached_property
    def _shown_titles(self) -> pl.DataFrame:
        shown = self._shown
        return searchable([r.item_id for r in shown], [r.title for r in shown], [r.popularity for r in shown])

    def _arrange(self, touched: np.ndarray) -> None:
        """Lay the changed items over the bundle's and sort."""
        base = self.base
        kept = np.delete(np.arange(base.num_items), touched)
        added = np.array([record.codes for record in self._shown], dtype=base.bundle.semantic_ids.dtype)
        added = added.reshape(len(self._shown), base.bundle.semantic_ids.shape[1])
        keys = np.concatenate([base.keys[kept], base.pack(added)])
        origin = np.concatenate([kept, base.num_items + np.arange(len(added))])
        order = np.argsort(keys, kind="stable")  # nearly sorted: 10 ms for a million
        self.origin = self._with_ties_broken(keys[order], origin[order])
        self.semantic_ids = np.concatenate([base.bundle.semantic_ids[kept], added])[order]
        if len(origin):
            self.trie = Trie.build(self.semantic_ids, base.bundle.manifest.codebook_sizes)
            self.trie_version = self.trie.version

    def _with_ties_broken(self, keys: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """Order items that share a SID like the bundle does: popularity, then item_id."""
        num_base = self.base.num_items
        shared = np.unique(keys[:-1][keys[1:] == keys[:-1]])
        shared = shared[np.isin(shared, keys[origin >= num_base])]
        places = np.flatnonzero(np.isin(keys, shared)) if len(shared) else shared
        if not len(places):
            return origin
        block = origin[places]
        records = self.base.records(block[block < num_base])
        of_bundle = iter(records)
        tied = [next(of_bundle) if row < num_base else self._shown[row - num_base] for row in block.tolist()]
        order = sorted(
            range(len(tied)), key=lambda n: (keys[places[n]], -tied[n].popularity, tied[n].item_id)
        )
        origin[places] = block[order]
        return origin


def _ranked(found: pl.DataFrame) -> Iterator[tuple[int, int, int]]:
    yield from found.select("tier", "popularity", "row").iter_rows()
