"""Text of items as a language model reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl


def item_texts(items: pl.DataFrame) -> list[str]:
    """Title, and on the next line the description if there is one. One text per item."""
    return [
        f"{title}\n{description}" if description else title
        for title, description in items.select("title", "description").iter_rows()
    ]


def encode_plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that people wrote.

    Control tokens and SID tokens spelled in a text are split like any other letters, so no text can
    become one; nothing (no BOS) is added.
    """
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
