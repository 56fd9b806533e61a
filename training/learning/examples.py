"""Training examples: token ids, and which of them the loss is taken on."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Examples:
    """Many token sequences, stored end to end.

    Attributes:
        tokens: all token ids. Shape: (total,), int32.
        is_label: True where the model must predict this token from those before it.
            Shape: (total,), bool.
        starts: example i is tokens[starts[i] : starts[i + 1]]. Shape: (n + 1,), int64.
    """

    tokens: np.ndarray
    is_label: np.ndarray
    starts: np.ndarray

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.is_label) == self.starts[-1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example. Shape: (n,), int64."""
        return np.diff(self.starts)

    @property
    def num_labels(self) -> int:
        """Labelled tokens in all."""
        return int(self.is_label.sum())

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and label mask of one example."""
        span = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.tokens[span], self.is_label[span]

    @classmethod
    def of_answers(cls, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> Examples:
        """Examples of (prompt, answer): the loss is taken on the answer only."""
        tokens, starts, is_label = array("i"), array("q", [0]), bytearray()  # 5 bytes a token
        for prompt, answer in pairs:
            tokens.extend(prompt)
            tokens.extend(answer)
            is_label.extend(bytes(len(prompt)))
            is_label.extend(b"\x01" * len(answer))
            starts.append(len(tokens))
        return cls(
            np.asarray(tokens, dtype=np.int32),
            np.frombuffer(is_label, dtype=bool),
            np.asarray(starts, dtype=np.int64),
        )
