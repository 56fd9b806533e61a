"""A new item gets a free semantic ID, the nearest one, and the same one every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import CatalogueFull
from service.semantic_ids.assignment import SidAssigner
from service.semantic_ids.codebooks import Codebooks


def books(*levels: list[float]) -> Codebooks:
    return Codebooks(tuple(np.array(level, dtype=np.float32)[:, None] for level in levels))


def vectors(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


NONE = np.zeros((0, 2), dtype=np.int64)


def test_a_free_nearest_id_is_taken_as_it_is() -> None:
    assigner = SidAssigner(books([0, 10], [-1, 2]), (2, 2), NONE)
    assert assigner.assign(vectors(11.9, -1.2)).tolist() == [[1, 1], [0, 0]]


def test_a_taken_one_moves_to_the_nearest_last_code_then_to_the_next_prefix() -> None:
    assigner = SidAssigner(books([0, 10, 30], [-1, 0, 2]), (3, 3), np.array([[1, 1]]))
    chosen = assigner.assign(vectors(10, 10, 10, 10))
    assert chosen.tolist() == [[1, 0], [1, 2], [0, 2], [0, 1]]


def test_a_released_id_is_free_again() -> None:
    assigner = SidAssigner(books([0, 10], [-1, 2]), (2, 2), np.array([[1, 1], [1, 1]]))
    assert assigner.is_taken([1, 1])
    assigner.release([1, 1])
    assert not assigner.is_taken([1, 1])
    assert assigner.assign(vectors(12)).tolist() == [[1, 1]]
    assert assigner.is_taken([1, 1])


def test_the_extra_level_takes_the_lowest_free_number() -> None:
    assigner = SidAssigner(books([0, 10]), (2, 2), np.array([[1, 0]]))
    assert assigner.assign(vectors(9, 9, 9)).tolist() == [[1, 1], [0, 0], [0, 1]]


def test_unused_codes_are_passed_over() -> None:
    plain = books([0, 10], [0, 1, 2])
    masked = Codebooks(plain.levels, (np.array([True, False]), np.array([True, False, True])))
    assigner = SidAssigner(masked, (2, 3), NONE)
    assert assigner.assign(vectors(10.9, 0.9)).tolist() == [[0, 2], [0, 0]]
    with pytest.raises(CatalogueFull, match="all semantic IDs of 2 x 3 codes are taken"):
        assigner.assign(vectors(0))


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_id_can_be_given_once(seed: int, num_levels: int, size: int, has_extra: bool) -> None:
    rng = np.random.default_rng(seed)
    codebooks = Codebooks(tuple(rng.normal(size=(size, 3)).astype(np.float32) for _ in range(num_levels)))
    sizes = (size,) * num_levels + ((2,) if has_extra else ())
    grid = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1).reshape(-1, len(sizes))
    taken = grid[rng.random(len(grid)) < 0.5]
    count = len(grid) - len(taken)
    points = rng.normal(size=(count, 3)).astype(np.float32)
    chosen = SidAssigner(codebooks, sizes, taken).assign(points)
    everything = np.concatenate([taken, chosen])
    assert len(np.unique(everything, axis=0)) == len(grid)
    again = SidAssigner(codebooks, sizes, taken[::-1])
    assert np.concatenate([again.assign(points[:2]), again.assign(points[2:])]).tolist() == chosen.tolist()


@pytest.mark.parametrize(
    ("sizes", "taken", "message"),
    [
        ((2,), NONE, "do not fit SIDs of 1 levels"),
        ((1, 2), NONE, "smaller than the codebooks"),
        ((2, 2), np.array([[0, 2]]), "outside codebooks"),
        ((2, 2), np.array([[0, 0, 0]]), "do not fit 2 levels"),
        ((2**32, 2**31), NONE, "64 bits"),
    ],
)
def test_what_does_not_fit_is_refused(sizes: tuple[int, ...], taken: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SidAssigner(books([0, 10], [-1, 2]), sizes, taken)


def test_a_sid_of_other_codebooks_is_refused() -> None:
    with pytest.raises(ValueError, match="is no SID of codebooks"):
        SidAssigner(books([0, 10], [-1, 2]), (2, 2), NONE).claim([0, 5])
