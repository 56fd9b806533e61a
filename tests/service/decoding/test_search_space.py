"""Catalogues are exchanged whole, hidden rows are out of reach, and damage is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.search_space import NUM_KEPT, SearchSpace, SearchSpaces, write_catalogue
from service.decoding.trie import Trie
from service.errors import CatalogueError, GtirecError, StaleCatalogue

SIZES = (3, 4, 5)
CODES = np.array(sorted({(n % 3, n % 4, n * 7 % 5) for n in range(50)}))

NUMBERS = pl.DataFrame({"number": range(40)})


def space(num_items: int = 40) -> SearchSpace:
    return SearchSpace(Trie.build(CODES[:num_items], SIZES))


@given(
    st.sets(st.integers(0, 39)), st.sets(st.integers(0, 39)), st.sets(st.integers(0, 39)), st.integers(0, 40)
)
def test_hidden_rows_are_not_counted(first: set[int], hidden: set[int], excluded: set[int], end: int) -> None:
    catalogue = space()
    catalogue.hide(np.array(sorted(first), dtype=np.int64))
    catalogue.hide(np.array(sorted(hidden, reverse=True), dtype=np.int64))  # replaces the first
    allowed = catalogue.allow([np.array(sorted(excluded), dtype=np.int64), None])
    counts = allowed.count(torch.tensor([[0], [0]]), torch.tensor([[end], [end]])).tolist()
    assert counts == [[len(set(range(end)) - hidden - excluded)], [len(set(range(end)) - hidden)]]


def test_rows_outside_the_catalogue_cannot_be_hidden() -> None:
    for rows in ([-1], [40]):
        with pytest.raises(ValueError, match=r"0\.\.39"):
            space().hide(np.array(rows))


def test_a_few_versions_are_held_and_named_ones_are_found() -> None:
    versions = [space(10 + n) for n in range(NUM_KEPT + 2)]
    held = SearchSpaces(versions[0])
    for one in versions[1:]:
        held.install(one)
    assert held.newest is held.of(None) is versions[-1]
    assert all(held.of(one.trie.version) is one for one in versions[-NUM_KEPT:])
    with pytest.raises(StaleCatalogue, match="ask again"):
        held.of(versions[1].trie.version)
    held.install(versions[-2])
    assert held.newest is versions[-2]
    assert len(held.tries()) == NUM_KEPT


def test_what_is_written_is_what_is_opened(tmp_path: Path) -> None:
    trie = space().trie
    write_catalogue(tmp_path / "new", trie, NUMBERS)
    opened = SearchSpace.open(tmp_path / "new")
    opened.check(SIZES)
    assert (opened.trie.version, opened.trie.num_items) == (trie.version, 40)
    with pytest.raises(CatalogueError, match="the model"):
        opened.check((3, 4, 6))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    "name", ["child_code_0", "child_code_2", "child_start_1", "row_start_0", "row_start_2"]
)
def test_every_damaged_number_is_noticed(tmp_path: Path, name: str) -> None:
    write_catalogue(tmp_path / "new", space().trie, NUMBERS)
    file = tmp_path / "new" / "trie" / f"{name}.npy"
    whole = file.read_bytes()
    header = len(whole) - np.load(file).nbytes
    for position in range(header, len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(GtirecError):
            SearchSpace.open(tmp_path / "new").check(SIZES)


@pytest.mark.parametrize("version", ["", "0" * 15, "x" * 16, None, 7])
def test_a_directory_without_a_version_is_refused(tmp_path: Path, version: object) -> None:
    write_catalogue(tmp_path / "new", space().trie, NUMBERS)
    (tmp_path / "new" / "catalogue.json").write_text(json.dumps({"trie_version": version}))
    with pytest.raises(CatalogueError, match="is no catalogue"):
        SearchSpace.open(tmp_path / "new")
    with pytest.raises(CatalogueError, match="is no catalogue"):
        SearchSpace.open(tmp_path)
