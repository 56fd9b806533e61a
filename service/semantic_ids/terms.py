"""Text to terms: words, runs of words, and, where asked, pieces of words."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Scripts without spaces between words give one term per character (runs of words then join them);
# everything else gives words that may hold a dot, slash, dash or apostrophe inside, as in 1/2-inch.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTER = rf"(?:(?![_{_UNSPACED}])\w)"
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTER}+(?:[.'/-]{_LETTER}+)*")

_SHORTEST_PIECE = 3
# Trade and copyright signs would become letters of the word before them.
_SIGNS = {ord(sign): " " for sign in "\u2122\u2120\u00ae\u00a9"}


def terms(text: str, max_words: int, max_chars: int = 0) -> list[str]:
    """Terms of a text, in lower case, as often as they occur.

    Args:
        text: any script.
        max_words: longest run of words that is a term.
        max_chars: longest piece of a word that is a term, from 3 letters up; 0 for none. Pieces
            start with a tilde, and < and > mark the ends of their word, so none equals a word.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    words: list[str] = _WORD.findall(text.lower())
    found = list(words)
    for size in range(2, max_words + 1):
        found += [" ".join(words[at : at + size]) for at in range(len(words) - size + 1)]
    if max_chars:
        for word in words:
            found += _pieces(word, max_chars)
    return found


@lru_cache(maxsize=200_000)
def _pieces(word: str, max_chars: int) -> tuple[str, ...]:
    marked = f"<{word}>"
    sizes = range(_SHORTEST_PIECE, min(max_chars, len(marked)) + 1)
    return tuple(f"~{marked[at : at + size]}" for size in sizes for at in range(len(marked) - size + 1))
