"""The prompt: the one place where a history becomes token ids, for training and for serving.

A prompt is `prefix + history + suffix`, where the history is the semantic IDs of the newest
`history_limit` items, oldest first, with `separator` between two items. The texts around the
history never change, so they are tokenized once, when the bundle is made, and carried as token
ids: serving needs no tokenizer for them and cannot drift from training.

With an empty suffix and separator the answer simply continues the history ("sequence" style), and
training may learn every item of a sequence in one pass. Chat models put the history in the user's
turn and answer in the assistant's ("chat" style).

A bundle trained with free text has a context frame too: the words stand between prefix and history,
`prefix + before + words + after + history + suffix`, and a prompt without words leaves all of it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

PROMPT_VERSION = 1


class ContextFrame(BaseModel):
    """Token ids around a short free text (a query, a mood, an occasion), and how much of it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    before_token_ids: tuple[int, ...] = ()
    after_token_ids: tuple[int, ...] = ()
    max_tokens: int = Field(ge=1, description="tokens of the text that are read; the rest is cut off")
    before_text: str = Field(default="", description="for people; the ids above are what counts")
    after_text: str = ""


class PromptTemplate(BaseModel):
    """Token ids around the history, and how much history is read.

    All token ids are ids of the bundle's tokenizer, in [0, vocab_size).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = PROMPT_VERSION
    style: str = Field(description="'sequence' (answer continues the history) or 'chat'")
    history_limit: int = Field(ge=1, description="items of history read, newest kept")
    prefix_token_ids: tuple[int, ...] = ()
    separator_token_ids: tuple[int, ...] = ()
    suffix_token_ids: tuple[int, ...] = ()
    prefix_text: str = Field(default="", description="for people; the ids above are what counts")
    suffix_text: str = ""
    context: ContextFrame | None = Field(
        default=None, description="where free text goes; none: the model was not trained with any"
    )

    @model_serializer(mode="wrap")
    def _without_empty_context(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A template without context is spelled as before there was any: bundle ids stay what they were."""
        fields = handler(self)
        if self.context is None:
            del fields["context"]
        return fields

    def token_ids(
        self,
        history_tokens: np.ndarray | Sequence[Sequence[int]],
        context_token_ids: Sequence[int] = (),
    ) -> list[int]:
        """Spell one prompt.

        Args:
            history_tokens: SID token ids of the history, oldest first.
                Shape: (T, L), integers; T may be 0 and may exceed `history_limit`.
            context_token_ids: the free text as `ContextReader` gives it; empty = none.

        Returns:
            Token ids of the prompt; the model's next token is level 0 of the answer.

        Raises:
            ValueError: there is a text, but the template has no place for one.
        """
        ids = list(self.prefix_token_ids)
        if len(context_token_ids):
            if self.context is None:
                raise ValueError("this prompt template has no place for free text")
            ids.extend(self.context.before_token_ids)
            ids.extend(context_token_ids[: self.context.max_tokens])
            ids.extend(self.context.after_token_ids)
        newest = history_tokens[-self.history_limit :]
        for position, item in enumerate(newest):
            if position and self.separator_token_ids:
                ids.extend(self.separator_token_ids)
            ids.extend(int(token) for token in item)
        ids.extend(self.suffix_token_ids)
        return ids

    def max_tokens(self, num_levels: int) -> int:
        """Length in tokens of the longest prompt this template can make."""
        around = len(self.prefix_token_ids) + len(self.suffix_token_ids)
        between = len(self.separator_token_ids) * (self.history_limit - 1)
        if self.context is not None:
            around += len(self.context.before_token_ids) + len(self.context.after_token_ids)
            around += self.context.max_tokens
        return around + between + self.history_limit * num_levels
