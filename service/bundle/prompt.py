"""The prompt: the one place where a history becomes token ids, for training and for serving.

A prompt is `prefix + history + suffix`, where the history is the semantic IDs of the newest
`history_limit` items, oldest first, with `separator` between two items. The texts around the
history never change, so they are tokenized once, when the bundle is made, and carried as token
ids: serving needs no tokenizer for them and cannot drift from training.

With an empty suffix and separator the answer simply continues the history ("sequence" style), and
training may learn every item of a sequence in one pass. Chat models put the history in the user's
turn and answer in the assistant's ("chat" style).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

PROMPT_VERSION = 1


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

    def token_ids(self, history_tokens: np.ndarray | Sequence[Sequence[int]]) -> list[int]:
        """Spell one prompt.

        Args:
            history_tokens: SID token ids of the history, oldest first.
                Shape: (T, L), integers; T may be 0 and may exceed `history_limit`.

        Returns:
            Token ids of the prompt; the model's next token is level 0 of the answer.
        """
        ids = list(self.prefix_token_ids)
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
        return around + between + self.history_limit * num_levels
