"""Pairs of text and semantic ID, both ways: what grounds the new tokens.

Six templates: title, description, or both, to the semantic ID, and the reverse. The loss is taken
on the answer only. Text and frame are tokenized apart, so that an item's own words can never become
a control token or a SID token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from training.base_model.text import encode_plain
from training.grounding.config import GroundingConfig
from training.grounding.frames import Frame, chat_frame, plain_frame
from training.learning.examples import Examples

_ITEMS_AT_ONCE = 8192  # texts of a whole catalogue of millions, tokenized at once, would fill the memory


@dataclass(frozen=True)
class PairTemplate:
    """One way to ask.

    Attributes:
        shows: which text stands on the text side.
        to_sid: True asks for the semantic ID, False for the text.
        before, after: the question around what is shown.
    """

    shows: Literal["title", "description", "both"]
    to_sid: bool
    before: str
    after: str


TEMPLATES: tuple[PairTemplate, ...] = (
    PairTemplate("title", True, "The item is called: ", "\nIts semantic ID: "),
    PairTemplate("description", True, "About an item: ", "\nIts semantic ID: "),
    PairTemplate("both", True, "Name and description of an item: ", "\nIts semantic ID: "),
    PairTemplate("title", False, "Semantic ID: ", "\nWhat the item is called: "),
    PairTemplate("description", False, "Semantic ID: ", "\nWhat is said about the item: "),
    PairTemplate("both", False, "Semantic ID: ", "\nName and description of the item: "),
)


def pair_examples(
    items: pl.DataFrame, sid_tokens: np.ndarray, tokenizer: Any, config: GroundingConfig, *, is_chat: bool
) -> Examples:
    """All pairs of all items; items without a description give the two title pairs only.

    Args:
        items: columns title, description. N rows.
        sid_tokens: SID token ids of the items. Shape: (N, L).
        tokenizer: with the SID tokens.
        config: how much of a text is kept.
        is_chat: ask in the model's chat form.
    """
    frame = chat_frame if is_chat else plain_frame
    frames = [frame(tokenizer, template.before, template.after) for template in TEMPLATES]
    return Examples.of_answers(_pairs(items, sid_tokens.tolist(), tokenizer, config, frames))


def _pairs(
    items: pl.DataFrame, sids: list[list[int]], tokenizer: Any, config: GroundingConfig, frames: list[Frame]
) -> Iterator[tuple[list[int], list[int]]]:
    line_break = encode_plain(tokenizer, ["\n"])[0]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for sid, (title, description) in zip(sids, tokenized_texts(items, tokenizer, config), strict=True):
        texts = {"title": title, "description": description, "both": [*title, *line_break, *description]}
        for template, frame in zip(TEMPLATES, frames, strict=True):
            if not texts[template.shows] or (template.shows != "title" and not description):
                continue
            text = texts[template.shows]
            shown, answer = (text, sid) if template.to_sid else (sid, [*text, *end])
            yield [*frame.before_ids, *shown, *frame.after_ids], answer


def tokenized_texts(
    items: pl.DataFrame, tokenizer: Any, config: GroundingConfig
) -> Iterator[tuple[list[int], list[int]]]:
    """Title and description of every item as token ids, cut to the configured lengths."""
    for slice_ in items.select("title", "description").iter_slices(_ITEMS_AT_ONCE):
        titles = encode_plain(tokenizer, slice_["title"].to_list())
        descriptions = encode_plain(tokenizer, slice_["description"].to_list())
        for title, description in zip(titles, descriptions, strict=True):
            yield title[: config.max_title_tokens], description[: config.max_description_tokens]
