"""Semantic IDs as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.semantic_ids.spelling import parse, sid_token, spell, vocabulary


@given(st.lists(st.integers(0, 99_999), min_size=1, max_size=26))
def test_spelling_round_trips(codes: list[int]) -> None:
    assert parse(spell(codes)) == tuple(codes)


def test_the_vocabulary_is_in_code_order() -> None:
    assert vocabulary([2, 1]) == [["<a_0>", "<a_1>"], ["<b_0>"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("<b_1>", "stands at level 0"),
        ("<a_1><a_2>", "stands at level 1"),
        ("<a_01>", "expected a token like <a_12>"),
        ("<a_1>, <b_2>", "expected a token like <b_12>"),
        ("<a_9>", r"outside \[0, 4\)"),
        ("<a_1><b_1>", "has 2 levels, expected 1"),
    ],
)
def test_bad_text_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text, [4] if "9" in text or (text.endswith("<b_1>") and text.startswith("<a")) else None)


def test_a_level_without_a_letter_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 26 levels"):
        sid_token(26, 0)
