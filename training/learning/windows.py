"""Cut long sequences into windows in which every target counts once."""

from __future__ import annotations


def windows(length: int, size: int, stride: int) -> list[tuple[int, int, int]]:
    """Cut one sequence so that every item counts once.

    Args:
        length: items in the sequence, n >= 2.
        size: items in a window, history_limit + 1.
        stride: how far windows of a long sequence lie apart.

    Returns:
        (start, end, first item that counts), all as positions in the sequence. In the first window
        item 0 does not count; in later ones those that an earlier window has counted.
    """
    end = min(length, size)
    found = [(0, end, 1)]
    while end < length:
        counted = end
        end = min(length, end + stride)
        found.append((end - size, end, counted))
    return found
