"""Short texts that somebody who wants an item might type, drawn from the item's own words.

Titles, brands and categories are what a catalogue has; moods and occasions come in where the
catalogue's texts name them. A text is one of: one to four words of the title that stand together, a
value of the metadata (brand, category, genre ...), a few words of the description, or two of these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

_MAX_WORDS = 4
_STRIP = ".,;:!?()[]\"'"


def draw_contexts(items: pl.DataFrame, targets: Sequence[int], *, seed: int) -> list[str]:
    """One text for every target; half of them in lower case, as people type.

    Args:
        items: columns title, description, metadata (JSON text). N rows.
        targets: item indices.
        seed: same seed, same texts.
    """
    rng = np.random.default_rng(seed)
    rows = items.select("title", "description", "metadata").rows()
    return [_draw(*rows[target], rng=rng) for target in targets]


def _draw(title: str, description: str, metadata: str, *, rng: np.random.Generator) -> str:
    values = _values(json.loads(metadata) if metadata else {})
    sources = ["title", "title"] + ["value"] * bool(values) + ["description"] * bool(description)
    chosen = rng.choice(len(sources), size=1 if rng.random() < 0.7 else 2, replace=False)
    parts = []
    for source in (sources[at] for at in chosen):
        if source == "value":
            parts.append(values[int(rng.integers(len(values)))])
        else:
            parts.append(_words(title if source == "title" else description, rng))
    text = " ".join(part for part in parts if part) or title
    return text.lower() if rng.random() < 0.5 else text


def _words(text: str, rng: np.random.Generator) -> str:
    """One to four words in a row."""
    words = [word for part in text.split() if (word := part.strip(_STRIP))]
    if not words:
        return ""
    count = min(len(words), int(rng.integers(1, _MAX_WORDS + 1)))
    start = int(rng.integers(len(words) - count + 1))
    return " ".join(words[start : start + count])


def _values(metadata: Any) -> list[str]:
    """Short texts anywhere in the metadata; numbers say too little."""
    if isinstance(metadata, dict):
        return [text for value in metadata.values() for text in _values(value)]
    if isinstance(metadata, list):
        return [text for value in metadata for text in _values(value)]
    is_short = isinstance(metadata, str) and 1 <= len(metadata.split()) <= _MAX_WORDS
    return [metadata] if is_short and not metadata.replace(".", "").isdigit() else []
