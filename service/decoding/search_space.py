"""What a decode may reach: one version of the catalogue, less the rows that were hidden since.

An engine holds the newest version and a few before it, because a request names the version that its
excluded rows refer to, and the catalogue may be exchanged between asking and decoding.

A catalogue directory is a bundle, or what `write_catalogue` makes: `catalogue.json`, `trie/*.npy` and
`attributes.arrow`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from service.bundle.attributes import load_attributes, save_attributes
from service.bundle.layout import ATTRIBUTES_FILE, TRIE_DIR
from service.bundle.manifest import MANIFEST_NAME
from service.decoding.filter_expression import compile_filter
from service.decoding.filters import DEFAULT_CACHE_BYTES, EVERYTHING, AllowedRows, FilterSums
from service.decoding.trie import Trie
from service.errors import CatalogueError, StaleCatalogue

CATALOGUE_NAME = "catalogue.json"
NUM_KEPT = 4  # versions: a request may be as old as its deadline, and a rebuild takes seconds


class SearchSpace:
    """One version of the catalogue as the beam search sees it.

    Args:
        trie: its trie.
        attributes: what its items can be filtered by; None where no request filters.
        device: where scores are computed.
        filter_cache_bytes: memory for prefix sums of filters, 4 bytes per item each.

    Raises:
        CatalogueError: trie and attributes are of different catalogues.
    """

    def __init__(
        self,
        trie: Trie,
        attributes: pl.DataFrame | None = None,
        *,
        device: torch.device | str = "cpu",
        filter_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        if attributes is not None and attributes.height != trie.num_items:
            raise CatalogueError(
                f"the catalogue has attributes of {attributes.height} items and a trie of {trie.num_items}"
            )
        self.trie = trie.to(device)
        self.attributes = pl.DataFrame() if attributes is None else attributes
        self._device = device
        # Not `self.rows_of`: a cycle would keep large tries until the garbage collector comes by.
        rows_of = partial(_rows_of, self.attributes)
        self._sums = FilterSums(trie.num_items, rows_of, max_bytes=filter_cache_bytes, device=device)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        device: torch.device | str = "cpu",
        filter_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> SearchSpace:
        """Memory-map a catalogue directory, without a look at its contents.

        Raises:
            BundleError, CatalogueError: it cannot be read.
        """
        trie = Trie.load(directory / TRIE_DIR, _version_of(directory))
        attributes = load_attributes(directory)
        return cls(trie, attributes, device=device, filter_cache_bytes=filter_cache_bytes)

    def check(self, codebook_sizes: tuple[int, ...]) -> None:
        """Read the trie once and compare it with what the version promises.

        Args:
            codebook_sizes: K of every level of the model that is to decode with it.

        Raises:
            CatalogueError: it belongs to another model, or is damaged.
        """
        if self.trie.codebook_sizes != codebook_sizes:
            raise CatalogueError(
                f"the new catalogue has codebooks {self.trie.codebook_sizes}, the model {codebook_sizes}; "
                "give its items semantic IDs with this bundle's tokenizer"
            )
        self.trie.check()

    def compile(self, raw: Any) -> str:
        """A caller's filter in canonical form.

        Raises:
            BadFilter: it cannot be understood; the message says where.
        """
        return compile_filter(raw, self.attributes.schema).canonical

    def rows_of(self, canonical: str) -> np.ndarray:
        """The rows that a canonical filter allows, hidden ones included. Shape: (N,), bool.

        Raises:
            BadFilter: it was made for a catalogue with other attributes.
        """
        return _rows_of(self.attributes, canonical)

    def hide(self, rows: np.ndarray) -> None:
        """Rows that no request may reach from now on; replaces what was hidden before.

        Args:
            rows: item rows in any order. Shape: (H,), int64.

        Raises:
            ValueError: a row is not in the catalogue.
        """
        rows, num_items = np.asarray(rows, dtype=np.int64), self.trie.num_items
        if len(rows) and (rows.min() < 0 or rows.max() >= num_items):
            raise ValueError(f"rows to hide must lie in 0..{num_items - 1}, got {rows.min()}..{rows.max()}")
        self._sums.hide(rows)

    def allow(
        self, excluded: Sequence[np.ndarray | None], filters: Sequence[str | None] | None = None
    ) -> AllowedRows:
        """What the requests of a batch may reach.

        Args:
            excluded: per request the rows it leaves out, sorted, unique, or None.
            filters: per request its canonical filter or None.

        Raises:
            BadFilter: a filter was made for a catalogue with other attributes.
        """
        sums, filter_of = self._sums.of([f or EVERYTHING for f in filters or [None] * len(excluded)])
        return AllowedRows(
            self.trie.num_items, excluded, filter_sums=sums, filter_of=filter_of, device=self._device
        )


def _rows_of(attributes: pl.DataFrame, canonical: str) -> np.ndarray:
    predicate = compile_filter(json.loads(canonical), attributes.schema).predicate
    return attributes.select(predicate.alias("allowed"))["allowed"].to_numpy()


class SearchSpaces:
    """The newest version of the catalogue and those before it that may still be asked for.

    Args:
        first: the version to begin with.
    """

    def __init__(self, first: SearchSpace) -> None:
        self._spaces = {first.trie.version: first}  # oldest first

    @property
    def newest(self) -> SearchSpace:
        """What a request that names no version is decoded with."""
        return next(reversed(self._spaces.values()))

    def of(self, trie_version: str | None) -> SearchSpace:
        """A version, the newest if None.

        Raises:
            StaleCatalogue: it is not held any more (or not yet).
        """
        if trie_version is None:
            return self.newest
        if (space := self._spaces.get(trie_version)) is None:
            raise StaleCatalogue(
                f"the engine holds the catalogues {', '.join(self._spaces)}, not {trie_version}; ask again"
            )
        return space

    def tries(self) -> dict[str, Trie]:
        """Every version held, oldest first."""
        return {version: space.trie for version, space in self._spaces.items()}

    def install(self, space: SearchSpace) -> None:
        """Make a version the newest; the oldest of more than `NUM_KEPT` is let go."""
        self._spaces.pop(space.trie.version, None)
        self._spaces[space.trie.version] = space
        while len(self._spaces) > NUM_KEPT:
            del self._spaces[next(iter(self._spaces))]


def write_catalogue(directory: Path, trie: Trie, attributes: pl.DataFrame) -> None:
    """Write what `Engine.load_catalogue` reads, atomically: a temporary directory, then one rename.

    Args:
        directory: to make; must not exist.
        trie: the new catalogue's, with the codebook sizes of the bundle being served.
        attributes: of its items, in the order of the trie's rows; see service/bundle/attributes.py.
    """
    staging = directory.parent / f".{directory.name}.{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        trie.save(staging / TRIE_DIR)
        save_attributes(attributes, staging / ATTRIBUTES_FILE)
        (staging / CATALOGUE_NAME).write_text(json.dumps({"trie_version": trie.version}), encoding="utf-8")
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _version_of(directory: Path) -> str:
    """The trie version that a catalogue directory or a bundle states."""
    file = directory / CATALOGUE_NAME
    if not file.exists():
        file = directory / MANIFEST_NAME
    try:
        version = json.loads(file.read_text(encoding="utf-8"))["trie_version"]
        if len(version) == 16 and int(version, 16) >= 0:
            return version
        raise ValueError(f"its trie_version is {version!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CatalogueError(f"{directory} is no catalogue: {file.name} cannot be read ({error})") from error
