"""Newline-delimited JSON as it arrives, without holding the whole body."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from service.errors import RequestError

MAX_LINE_BYTES = 1 << 16


async def numbered_lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1; the last one needs no newline.

    Args:
        chunks: the body.

    Raises:
        RequestError: a line is longer than `MAX_LINE_BYTES`.
    """
    rest, number = b"", 0
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            if _checked(number, line).strip():
                yield number, line
        _checked(number + 1, rest)
    if rest.strip():
        yield number + 1, rest


def _checked(number: int, line: bytes) -> bytes:
    if len(line) > MAX_LINE_BYTES:
        raise RequestError(
            f"line {number} is longer than {MAX_LINE_BYTES} bytes; send one JSON object per line, each ended "
            "by a newline"
        )
    return line
