"""The trie holds exactly the SIDs it was built from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from service.decoding.trie import Trie
from service.errors import BundleError


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    sizes = tuple(draw(st.lists(st.integers(1, 300), min_size=1, max_size=5)))
    num_items = draw(st.integers(1, 60))
    columns = [draw(npst.arrays(np.int64, num_items, elements=st.integers(0, size - 1))) for size in sizes]
    codes = np.stack(columns, axis=1)
    return codes[np.lexsort(codes.T[::-1])], sizes


def walk(trie: Trie) -> list[tuple[tuple[int, ...], int, int]]:
    """Every leaf as (SID, first row, end row), by following the arrays from the root."""
    nodes: list[tuple[tuple[int, ...], int]] = [((), 0)]
    for level in range(trie.num_levels):
        starts, codes = trie.child_start[level], trie.child_code[level]
        nodes = [
            ((*prefix, int(codes[child])), child)
            for prefix, node in nodes
            for child in range(int(starts[node]), int(starts[node + 1]))
        ]
    rows = trie.row_start[-1]
    return [(sid, int(rows[leaf]), int(rows[leaf + 1])) for sid, leaf in nodes]


@given(catalogues())
def test_leaves_are_the_distinct_sids_with_their_rows(catalogue: tuple[np.ndarray, tuple[int, ...]]) -> None:
    codes, sizes = catalogue
    trie = Trie.build(codes, sizes)
    leaves = walk(trie)
    assert [sid for sid, _, _ in leaves] == sorted({tuple(row) for row in codes.tolist()})
    for sid, first, end in leaves:
        assert {tuple(row) for row in codes[first:end].tolist()} == {sid}
    assert leaves[0][1] == 0
    assert leaves[-1][2] == len(codes)
    spelled = trie.sids_of(torch.arange(trie.num_leaves))
    assert [tuple(row) for row in spelled.tolist()] == [sid for sid, _, _ in leaves]


@given(catalogues())
def test_every_node_covers_the_rows_with_its_prefix(catalogue: tuple[np.ndarray, tuple[int, ...]]) -> None:
    codes, sizes = catalogue
    trie = Trie.build(codes, sizes)
    for level in range(trie.num_levels):
        prefixes, counts = np.unique(codes[:, : level + 1], axis=0, return_counts=True)
        assert len(prefixes) == trie.child_code[level].numel()
        assert np.diff(trie.row_start[level].numpy()).tolist() == counts.tolist()


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    codes = np.array([[0, 0, 300], [0, 5, 2], [7, 0, 0], [7, 0, 0]])
    built = Trie.build(codes, (8, 6, 70000))
    built.save(tmp_path)
    loaded = Trie.load(tmp_path, built.version)
    assert walk(loaded) == walk(built)
    assert (loaded.version, loaded.num_items, loaded.max_children) == (built.version, 4, built.max_children)


def test_the_version_names_the_content() -> None:
    codes = np.array([[0, 1], [1, 0]])
    assert Trie.build(codes, (2, 2)).version == Trie.build(codes.astype(np.uint16), (2, 2)).version
    assert Trie.build(codes, (2, 2)).version != Trie.build(codes[:1], (2, 2)).version


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[1, 0], [0, 0]], "row 1 is out of order"),
        ([[0, 1], [0, 0]], "row 1 is out of order"),
        ([[0, 2]], "level 1 has codes 2..2, allowed are 0..1"),
        ([[-1, 0]], "level 0 has codes -1..-1"),
        ([[0]], r"shape \(N >= 1, 2\)"),
    ],
)
def test_bad_sids_are_refused_with_the_place(codes: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trie.build(np.array(codes), (2, 2))


def test_a_missing_array_is_refused(tmp_path: Path) -> None:
    Trie.build(np.array([[0, 1]]), (2, 2)).save(tmp_path)
    (tmp_path / "row_start_1.npy").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        Trie.load(tmp_path, "v")


def test_arrays_of_another_trie_are_refused(tmp_path: Path) -> None:
    Trie.build(np.array([[0, 1], [1, 1]]), (2, 2)).save(tmp_path)
    other = tmp_path / "other"
    Trie.build(np.array([[0, 1]]), (2, 2)).save(other)
    (other / "child_start_1.npy").replace(tmp_path / "child_start_1.npy")
    with pytest.raises(BundleError, match="inconsistent at level 1"):
        Trie.load(tmp_path, "v")


def test_a_million_items_fit_the_stated_memory() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (1_000_000, 4))
    codes = codes[np.lexsort(codes.T[::-1])]
    assert Trie.build(codes, (256,) * 4).num_bytes <= 20 * len(codes)
