"""Terms of any script."""

from hypothesis import given
from hypothesis import strategies as st

from service.semantic_ids.terms import terms


def test_words_keep_what_joins_their_parts() -> None:
    assert terms("1/2-Inch steel, #8 (M3.5) snake_case", 1) == [
        "1/2-inch",
        "steel",
        "8",
        "m3.5",
        "snake",
        "case",
    ]


def test_runs_of_words() -> None:
    assert terms("red steel lamp", 3)[3:] == ["red steel", "steel lamp", "red steel lamp"]


def test_other_scripts_and_signs() -> None:
    assert terms("\u0421\u0442\u043e\u043b \u00c9mail\u00e9", 1) == [
        "\u0441\u0442\u043e\u043b",
        "\u00e9maill\u00e9"[:5] + "\u00e9",
    ]
    assert terms("Teflon\u2122 tape\u00ae", 1) == ["teflon", "tape"]
    assert terms("\u7ea2\u706f M3", 2) == ["\u7ea2", "\u706f", "m3", "\u7ea2 \u706f", "\u706f m3"]


def test_pieces_of_words_equal_no_word() -> None:
    assert terms("lamp", 1, 4) == ["lamp", "~<la", "~lam", "~amp", "~mp>", "~<lam", "~lamp", "~amp>"]


@given(st.text(max_size=60), st.integers(1, 3), st.sampled_from([0, 3, 5]))
def test_any_text_has_terms_without_white_space_at_the_ends(text: str, words: int, chars: int) -> None:
    assert all(term and term == term.strip() for term in terms(text, words, chars))
