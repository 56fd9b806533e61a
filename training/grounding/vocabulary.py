"""Add SID tokens to a language model: exact size, contiguous ids, real text rows told from padding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from torch import nn

from service.bundle import Level
from training.errors import TrainingError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Where the SID tokens stand in an extended model.

    Attributes:
        levels: token range of every level.
        text_token_ids: rows that a token of the original tokenizer uses; padding rows are not
            among them. Shape: (V_text,), int64, ascending.
    """

    levels: tuple[Level, ...]
    text_token_ids: np.ndarray

    @property
    def first_new_id(self) -> int:
        """Id of the first SID token; every row from here on is new."""
        return self.levels[0].first_token_id

    @property
    def num_new(self) -> int:
        """SID tokens in all."""
        return sum(level.codebook_size for level in self.levels)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """(first_token_id, codebook_size) of every level."""
        return tuple((level.first_token_id, level.codebook_size) for level in self.levels)

    def tokens_of(self, codes: np.ndarray) -> np.ndarray:
        """SID codes -> SID token ids. Shape: (..., L) -> (..., L), int64."""
        return np.asarray(codes, dtype=np.int64) + np.asarray([first for first, _ in self.ranges])

    def save(self, path: Path) -> None:
        """Write the levels as JSON."""
        path.write_text(json.dumps([level.model_dump() for level in self.levels], indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, tokenizer: Any) -> Vocabulary:
        """Read what `save` wrote; the text tokens are those of the tokenizer below the first new id."""
        levels = tuple(Level.model_validate(level) for level in json.loads(path.read_text()))
        text_ids = np.sort(np.fromiter(tokenizer.get_vocab().values(), dtype=np.int64))
        return cls(levels, text_ids[text_ids < levels[0].first_token_id])


def spell_levels(levels: Sequence[tuple[str, int]]) -> list[str]:
    """All SID tokens in id order, e.g. `<a_0>`, `<a_1>`, ... `<b_0>`."""
    return [f"<{letter}_{code}>" for letter, size in levels for code in range(size)]


def extend_vocabulary(model: nn.Module, tokenizer: Any, levels: Sequence[tuple[str, int]]) -> Vocabulary:
    """Add the SID tokens to tokenizer and model. The new rows hold nothing of meaning yet.

    The tokens are special tokens, so that text tokenized with special tokens off can never become
    one. Some models (Qwen3) have padding rows beyond their tokenizer's entries: new ids begin right
    after the tokenizer's last, inside the padding, and the matrix is then cut or grown to end with
    the last SID token.

    Args:
        model: Hugging Face causal LM; changed in place.
        tokenizer: fast tokenizer; changed in place.
        levels: (letter, codebook_size) of every level.

    Raises:
        TrainingError: the vocabulary holds SID tokens already, or has gaps where ids should follow.
    """
    any_model: Any = model
    before = tokenizer.get_vocab()
    names = spell_levels(levels)
    taken = next((name for name in names if name in before), None)
    if taken is not None:
        raise TrainingError(
            f"the base model's vocabulary holds {taken} already; start from a model without semantic IDs"
        )
    num_rows = any_model.get_input_embeddings().weight.shape[0]
    text_ids = np.sort(np.fromiter(before.values(), dtype=np.int64))
    if text_ids[-1] >= num_rows:
        raise TrainingError(
            f"the tokenizer uses id {text_ids[-1]}, but the model has only {num_rows} rows; "
            "they belong to different models"
        )
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], True)
    new_ids = np.asarray(tokenizer.convert_tokens_to_ids(names), dtype=np.int64)
    first = int(new_ids[0])
    if first <= text_ids[-1] or (np.diff(new_ids) != 1).any():
        raise TrainingError("the tokenizer's ids have gaps, so the SID tokens' ids do not follow one another")
    any_model.resize_token_embeddings(int(new_ids[-1]) + 1, mean_resizing=False)
    placed = []
    for letter, size in levels:
        placed.append(Level(letter=letter, codebook_size=size, first_token_id=first))
        first += size
    return Vocabulary(tuple(placed), text_ids)


def token_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices with one row per token: "input", and "output" if it is a matrix of its own."""
    any_model: Any = model
    reads = any_model.get_input_embeddings().weight
    writes = any_model.get_output_embeddings().weight
    return {"input": reads} if writes is reads else {"input": reads, "output": writes}


@torch.no_grad()
def write_new_rows(model: nn.Module, vocabulary: Vocabulary, rows: dict[str, torch.Tensor]) -> None:
    """Put rows into the matrices. `rows` has the keys of `token_matrices`; shape of each: (R, D)."""
    for name, matrix in token_matrices(model).items():
        matrix[vocabulary.first_new_id :] = rows[name].to(matrix)


@torch.no_grad()
def read_new_rows(model: nn.Module, vocabulary: Vocabulary) -> dict[str, torch.Tensor]:
    """Copies of the rows of the SID tokens, float32. Shape of each: (R, D)."""
    first = vocabulary.first_new_id
    return {name: matrix[first:].float().clone() for name, matrix in token_matrices(model).items()}
