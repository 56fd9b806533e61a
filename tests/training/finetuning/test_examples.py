from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle import PromptTemplate
from training.errors import TrainingError
from training.finetuning.examples import row_examples, sequence_examples
from training.learning.windows import windows

SIDS = np.arange(100, 160).reshape(20, 3)  # three tokens for each of 20 items
SEQUENCE = PromptTemplate(style="sequence", history_limit=4, prefix_token_ids=(1,))
CHAT = PromptTemplate(
    style="chat",
    history_limit=4,
    prefix_token_ids=(1, 2),
    separator_token_ids=(3,),
    suffix_token_ids=(4, 5),
)
ITEM_LISTS = st.lists(st.lists(st.integers(0, 19), min_size=2, max_size=15), min_size=1, max_size=5)


@given(length=st.integers(2, 60), limit=st.integers(1, 12), stride=st.integers(1, 15))
def test_windows_count_every_target_once_with_a_served_history(length: int, limit: int, stride: int) -> None:
    size = limit + 1
    stride = min(stride, limit)
    counted = []
    for start, end, first in windows(length, size, stride):
        assert 0 <= start < first < end <= length
        assert end - start <= size
        for target in range(first, end):
            history = target - start
            assert 1 <= history <= limit
            assert history >= min(target, size - stride)
        counted.extend(range(first, end))
    assert counted == list(range(1, length))


@given(sequences=ITEM_LISTS)
def test_every_target_is_learned_after_the_very_prompt_that_serves(sequences: list[list[int]]) -> None:
    """With stride 1 the tokens before a target are the serving prompt of its history."""
    examples = sequence_examples(pl.Series(sequences), SIDS, SEQUENCE, stride=1)
    seen = []
    for index in range(len(examples)):
        ids, is_label = examples.example(index)
        for position in np.flatnonzero(is_label)[::3]:
            seen.append((ids[:position].tolist(), ids[position : position + 3].tolist()))
    expected = [
        (SEQUENCE.token_ids(SIDS[sequence[:place]]), SIDS[sequence[place]].tolist())
        for sequence in sequences
        for place in range(1, len(sequence))
    ]
    assert seen == expected


@pytest.mark.parametrize("prompt", [SEQUENCE, CHAT])
@given(sequences=ITEM_LISTS)
def test_rows_are_the_serving_prompt_and_the_answer(
    prompt: PromptTemplate, sequences: list[list[int]]
) -> None:
    histories, targets = [s[:-1] for s in sequences], [s[-1] for s in sequences]
    examples = row_examples(pl.Series(histories), targets, SIDS, prompt)
    for index, (history, target) in enumerate(zip(histories, targets, strict=True)):
        ids, is_label = examples.example(index)
        assert ids.tolist() == [*prompt.token_ids(SIDS[history]), *SIDS[target].tolist()]
        assert is_label.sum() == 3
        assert is_label[-3:].all()


def test_the_first_item_counts_only_if_asked_for() -> None:
    sequences = pl.Series([[0, 1, 2, 3, 4, 5, 6]])
    without = sequence_examples(sequences, SIDS, SEQUENCE)
    with_first = sequence_examples(sequences, SIDS, SEQUENCE, include_first_item=True)
    assert without.num_labels == 6 * 3
    assert with_first.num_labels == 7 * 3
    assert with_first.example(0)[1].tolist() == [False] + [True] * 15
    assert without.example(1)[1].tolist() == with_first.example(1)[1].tolist()


def test_the_chat_style_cannot_be_learned_in_sequences() -> None:
    with pytest.raises(TrainingError, match="needs prompt.style = 'sequence'"):
        sequence_examples(pl.Series([[0, 1]]), SIDS, CHAT)


def test_the_first_item_needs_something_before_it() -> None:
    bare = PromptTemplate(style="sequence", history_limit=4)
    with pytest.raises(TrainingError, match="start token"):
        sequence_examples(pl.Series([[0, 1]]), SIDS, bare, include_first_item=True)


def test_no_sequence_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no training sequence"):
        sequence_examples(pl.Series([], dtype=pl.List(pl.Int32)), SIDS, SEQUENCE)
