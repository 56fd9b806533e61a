"""Words that describe a prefix come from the titles below it and tell them from the others."""

from __future__ import annotations

import numpy as np

from service.catalogue.code_words import CodeWords

TITLES = [
    *["Steel hammer, heavy", "Steel hammer, light", "Rubber hammer"],
    *["Steel saw", "Fine saw"],
    *["Garden hose 10 m", "Garden hose 20 m", "Garden chair"],
]
RANGES = {(): (0, 8), (0,): (0, 5), (0, 0): (0, 3), (0, 1): (3, 5), (1,): (5, 8), (2,): (8, 8)}


def words(prefix: tuple[int, ...], most: int = 3) -> tuple[str, ...]:
    described = CodeWords(len(TITLES), lambda rows: [TITLES[row].lower() for row in rows], RANGES.__getitem__)
    return described.of(prefix, most)


def test_the_most_telling_word_comes_first() -> None:
    assert words((0, 0))[0] == "hammer"
    assert words((0, 1))[0] == "saw"
    assert words((1,))[:2] == ("garden", "hose")


def test_a_word_of_all_titles_or_of_few_is_no_description() -> None:
    assert words(()) == ()
    assert "heavy" not in words((0, 0), most=10)
    assert "rubber" not in words((0,), most=10)


def test_nothing_is_invented_for_an_empty_prefix() -> None:
    assert words((2,)) == ()


def test_large_ranges_are_sampled_evenly() -> None:
    asked: list[np.ndarray] = []

    def titles(rows: np.ndarray) -> list[str]:
        asked.append(rows)
        return ["drill" if row < 50_000 else "lamp" for row in rows]

    described = CodeWords(100_000, titles, lambda prefix: (0, 50_000))
    assert described.of((0,)) == ("drill",)
    assert [len(rows) for rows in asked] == [300, 20_000]
