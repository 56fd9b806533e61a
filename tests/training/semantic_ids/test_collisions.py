"""Every item ends with a semantic ID of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.semantic_ids.codebooks import Codebooks
from training.errors import TrainingError
from training.semantic_ids.collisions import number_collisions, reassign, unique_share
from training.semantic_ids.imported import explain, read_semantic_ids
from training.semantic_ids.residual_kmeans import fit_residual_kmeans


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 6), st.floats(0.05, 1.0))
@settings(max_examples=40, deadline=None)
def test_reassigned_codes_are_unique_and_in_range(seed: int, num_levels: int, size: int, fill: float) -> None:
    rng = np.random.default_rng(seed)
    num_items = max(1, int(fill * size**num_levels))
    vectors = rng.integers(0, 3, (num_items, 4)).astype(np.float32)
    vectors += rng.normal(scale=0.01, size=vectors.shape).astype(np.float32)
    books = fit_residual_kmeans(
        np.concatenate([vectors, rng.normal(size=(50, 4)).astype(np.float32)]), num_levels, size, seed=0
    )
    sizes = [len(book) for book in books.levels]
    if num_items > np.prod(sizes):
        return
    raw = books.encode(vectors)[0]
    codes = reassign(raw, vectors, books)
    assert unique_share(codes) == 1.0
    assert (codes >= 0).all() and (codes < sizes).all()
    alone = np.array([(raw[:, :-1] == row[:-1]).all(1).sum() == 1 for row in raw])
    if unique_share(raw) == 1.0:
        assert (codes == raw).all()
    elif num_items < size:  # nobody had to move to another prefix
        assert (codes[alone] == raw[alone]).all()
        assert (codes[:, :-1] == raw[:, :-1]).all()


def test_more_items_than_ids_is_explained() -> None:
    vectors = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    books = fit_residual_kmeans(vectors, 1, 3, seed=0)
    with pytest.raises(TrainingError, match="10 items do not fit 3 semantic IDs .* raise semantic_ids"):
        reassign(books.encode(vectors)[0], vectors, books)


def test_the_extra_level_numbers_collisions_by_popularity() -> None:
    codes = np.array([[1, 1], [0, 0], [1, 1], [1, 1]])
    numbered = number_collisions(codes, np.array([5, 0, 9, 5]))
    assert numbered.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 1, 2]]


def test_a_full_prefix_sends_items_to_the_nearest_one_with_room() -> None:
    books = Codebooks(
        (np.array([[0.0], [10.0], [100.0]], dtype=np.float32), np.array([[0.0], [1.0]], dtype=np.float32))
    )
    vectors = np.array([[0.1], [0.2], [0.9], [100.0]], dtype=np.float32)
    codes = reassign(books.encode(vectors)[0], vectors, books)
    assert codes[3].tolist() == [2, 0]
    assert sorted(codes[:3].tolist()) == [[0, 0], [0, 1], [1, 0]]


def test_unused_codes_of_imported_ids_are_never_given() -> None:
    vectors = np.array([[5.0], [5.0], [9.0]], dtype=np.float32)
    codes = np.array([[3, 1], [3, 1], [5, 4]])
    books = explain(codes, vectors)
    assert books.used_codes(0).tolist() == [3, 5]
    moved = reassign(codes, vectors, books)
    assert moved[:2].tolist() == [[3, 1], [3, 4]] and moved[2].tolist() == [5, 4]


def write(path: Path, table: object) -> Path:
    path.write_text(json.dumps(table))
    return path


def test_imported_ids_are_read_and_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "index.json", {"x": ["<a_2>", "<b_0>"], "y": ["<a_0>", "<b_1>"]})
    codes = read_semantic_ids(path, ["y", "x"])
    assert codes.tolist() == [[0, 1], [2, 0]]
    vectors = np.array([[1.0, 0.0], [0.0, 3.0]], dtype=np.float32)
    assert explain(codes, vectors).reconstruct(codes) == pytest.approx(vectors, abs=1e-6)


def test_ragged_ids_get_code_zero_for_what_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "index.json", {"x": ["<a_1>", "<b_0>"], "y": ["<a_1>"], "z": ["<a_1>", "<b_3>"]})
    assert read_semantic_ids(path, ["x", "y", "z"]).tolist() == [[1, 1], [1, 0], [1, 4]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"y": ["<a_1>"]}, "no semantic ID for item x"),
        ({"x": ["<b_1>"]}, "stands at level 0"),
        ({"x": 3}, "index.json"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, table: object, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_semantic_ids(write(tmp_path / "index.json", table), ["x"])
