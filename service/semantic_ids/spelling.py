"""How a semantic ID is written: one SID token such as `<a_12>` per level, level letters a, b, c, ..."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from service.bundle.manifest import LETTERS

_TOKEN = re.compile(r"<([a-z])_(0|[1-9][0-9]{0,9})>")


def sid_token(level: int, code: int) -> str:
    """Spell one code.

    Args:
        level: position in the semantic ID, in [0, 26).
        code: code at that level, >= 0.

    Raises:
        ValueError: level or code is out of range.
    """
    if not 0 <= level < len(LETTERS):
        raise ValueError(f"level {level} has no letter; a semantic ID has at most {len(LETTERS)} levels")
    if code < 0:
        raise ValueError(f"code {code} at level {level} is negative")
    return f"<{LETTERS[level]}_{int(code)}>"


def sid_tokens(codes: Iterable[int]) -> list[str]:
    """The SID tokens of one semantic ID, first level first."""
    return [sid_token(level, code) for level, code in enumerate(codes)]


def spell(codes: Iterable[int]) -> str:
    """One semantic ID as text, e.g. `<a_12><b_7><c_200>`."""
    return "".join(sid_tokens(codes))


def vocabulary(codebook_sizes: Sequence[int]) -> list[list[str]]:
    """Every SID token, per level in code order."""
    return [[sid_token(level, code) for code in range(size)] for level, size in enumerate(codebook_sizes)]


def parse(text: str, codebook_sizes: Sequence[int] | None = None) -> tuple[int, ...]:
    """Read one semantic ID.

    Args:
        text: SID tokens with nothing else around them but spaces, e.g. `<a_12><b_7>`.
        codebook_sizes: K of every level, to check length and ranges; None checks only the letters.

    Returns:
        Codes, first level first.

    Raises:
        ValueError: the text is no semantic ID, or not one of these codebooks.
    """
    codes: list[int] = []
    stripped = text.strip()
    position = 0
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            raise ValueError(
                f"{text!r} is no semantic ID: expected a token like {_example(len(codes))} "
                f"at {stripped[position : position + 12]!r}"
            )
        if len(codes) >= len(LETTERS) or match[1] != LETTERS[len(codes)]:
            raise ValueError(f"{text!r} is no semantic ID: {match[0]} stands at level {len(codes)}")
        codes.append(int(match[2]))
        position = match.end()
        while position < len(stripped) and stripped[position].isspace():
            position += 1
    if not codes:
        raise ValueError("the text is empty, a semantic ID has at least one token like <a_12>")
    if codebook_sizes is not None:
        _check_ranges(text, codes, codebook_sizes)
    return tuple(codes)


def _check_ranges(text: str, codes: Sequence[int], codebook_sizes: Sequence[int]) -> None:
    if len(codes) != len(codebook_sizes):
        raise ValueError(f"{text!r} has {len(codes)} levels, expected {len(codebook_sizes)}")
    for level, (code, size) in enumerate(zip(codes, codebook_sizes, strict=True)):
        if code >= size:
            raise ValueError(f"{text!r}: {sid_token(level, code)} is outside [0, {size}) of its level")


def _example(level: int) -> str:
    return sid_token(min(level, len(LETTERS) - 1), 12)
