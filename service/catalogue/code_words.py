"""Words for what the codes of a semantic ID mean: taken from the titles that carry them, never invented.

A code means something only after the codes before it, so words belong to a prefix. A word describes a
prefix if many titles below it hold the word and few others do.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import numpy as np

MAX_TITLES = 20_000  # read for the words of the whole catalogue, evenly spread
MAX_BELOW = 300  # read for one prefix
MIN_SHARE = 0.2  # of the titles below a prefix that must hold a word
_WORD = re.compile(r"[^\W\d_]{3,}")


class CodeWords:
    """Describes prefixes of one version of the catalogue.

    Args:
        num_items: N.
        titles_of: titles of item rows, in lower case. Shape of the rows: (n,), int64.
        rows_under: range [first, end) of the item rows below a prefix.
    """

    def __init__(
        self,
        num_items: int,
        titles_of: Callable[[np.ndarray], Sequence[str]],
        rows_under: Callable[[tuple[int, ...]], tuple[int, int]],
    ) -> None:
        self._num_items = num_items
        self._titles_of = titles_of
        self._rows_under = rows_under
        self.of = lru_cache(maxsize=4096)(self._of)

    def _of(self, prefix: tuple[int, ...], most: int = 3) -> tuple[str, ...]:
        """Words that tell the items below a prefix from the others, best first; none where none does.

        Args:
            prefix: the first codes of a semantic ID.
            most: at most so many words.
        """
        first, end = self._rows_under(prefix)
        below, num_below = self._count(first, end, MAX_BELOW)
        everywhere, num_everywhere = self._everywhere
        if not num_below:
            return ()
        scores = {}
        for word, count in below.items():
            share = count / num_below
            expected = (everywhere[word] + 1) / (num_everywhere + 1)
            if share >= MIN_SHARE and (count > 1 or num_below == 1) and share > expected:
                scores[word] = share * math.log(share / expected)
        return tuple(sorted(scores, key=lambda word: (-scores[word], word))[:most])

    @cached_property
    def _everywhere(self) -> tuple[Counter[str], int]:
        return self._count(0, self._num_items, MAX_TITLES)

    def _count(self, first: int, end: int, most: int) -> tuple[Counter[str], int]:
        """In how many titles of a range every word stands, and how many titles were read."""
        rows = np.unique(np.linspace(first, end - 1, min(most, end - first)).astype(np.int64))
        counts: Counter[str] = Counter()
        for title in self._titles_of(rows):
            counts.update(set(_WORD.findall(title)))
        return counts, len(rows)
