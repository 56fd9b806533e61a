from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.learning.batches import Batches, Stream, derive_seed, micro_batches
from training.learning.examples import Examples

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=30)


def examples_of(lengths: list[int]) -> Examples:
    return Examples.of_answers(
        ([100 * number] * (length - 1), [100 * number + 1]) for number, length in enumerate(lengths)
    )


@given(num=st.integers(1, 40), seed=st.integers(0, 5), batch=st.integers(1, 17))
def test_every_epoch_of_a_stream_shows_every_example_once(num: int, seed: int, batch: int) -> None:
    taken = np.concatenate([Stream(num, seed).take(step * batch, batch) for step in range(2 * num)])
    for epoch in range(2 * batch):
        assert sorted(taken[epoch * num : (epoch + 1) * num]) == list(range(num))


@given(lengths=LENGTHS, max_tokens=st.integers(1, 60))
def test_micro_batches_keep_every_example_within_the_limit(lengths: list[int], max_tokens: int) -> None:
    examples = examples_of(lengths)
    made = micro_batches([examples.example(i) for i in range(len(examples))], max_tokens)
    assert sum(int(micro.is_label.sum()) for micro in made) == sum(length > 1 for length in lengths)
    assert sum(len(micro.ids) for micro in made) == len(lengths)
    for micro in made:
        assert micro.ids.numel() <= max(max_tokens, micro.ids.shape[1])
        assert (micro.ids[micro.is_label] % 100 == 1).all()


def test_a_batch_is_a_function_of_the_step_alone() -> None:
    sources = [(examples_of([3, 4, 5, 6, 7]), 3), (examples_of([2, 2, 9]), 1)]
    forward = Batches(sources, seed=1, max_tokens=20)
    steps_in_order = [forward.at(step) for step in range(9)]
    fresh = Batches(sources, seed=1, max_tokens=20)
    for step in (8, 0, 5):
        for one, other in zip(fresh.at(step), steps_in_order[step], strict=True):
            assert one.ids.equal(other.ids)
            assert one.is_label.equal(other.is_label)


def test_sources_are_mixed_in_fixed_numbers() -> None:
    batches = Batches([(examples_of([2] * 4), 3), (examples_of([5] * 4), 2), (examples_of([7]), 0)], seed=0)
    for step in range(6):
        widths = [micro.ids.shape[1] for micro in batches.at(step) for _ in micro.ids]
        assert len(widths) == 5
        longest = [int(row.is_label.any(0).nonzero().max()) for row in batches.at(step)]
        assert max(longest) == 4


def test_no_example_is_an_error() -> None:
    with pytest.raises(ValueError, match="no example"):
        Stream(0, seed=0)


def test_seeds_of_different_purposes_differ() -> None:
    assert len({derive_seed(0, "a", step) for step in range(100)} | {derive_seed(1, "a", 0)}) == 101
