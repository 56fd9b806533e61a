"""The bundle's table of contents: everything the service must know before it touches a tensor."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.bundle.prompt import PromptTemplate

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Level(BaseModel):
    """One level of the semantic IDs, after collision handling.

    The SID token of code c has id `first_token_id + c`: the tokens of a level are contiguous, so a
    level's scores are one slice of the logits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    letter: str = Field(pattern="^[a-z]$")
    codebook_size: int = Field(ge=1, le=2**31 - 1)
    first_token_id: int = Field(ge=0)


class FileEntry(BaseModel):
    """Hash and size of one file of the bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    num_bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """`manifest.json`. Unknown fields and unknown schema versions are refused, never guessed at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    name: str
    num_items: int = Field(ge=1, le=2**31 - 1)
    levels: tuple[Level, ...] = Field(min_length=1, max_length=26)
    vocab_size: int = Field(ge=1, description="rows of the model's embedding matrix")
    architecture: str = Field(description="first entry of the model config's `architectures`")
    dtype: str = Field(default="float32", description="dtype the weights are stored in")
    trie_version: str = Field(description="hash of the sorted SIDs; names the trie in replies")
    prompt: PromptTemplate
    context_trained: bool = Field(default=False, description="free-text context was part of training")
    beam_width: int | None = Field(
        default=None,
        ge=1,
        description="beams that the figures in `metrics` were measured with: the width to serve with "
        "where nobody asks for another; null where nothing was measured",
        exclude_if=lambda width: width is None,  # so that bundles from before keep their bundle_id
    )
    tie_break: str = Field(
        default="popularity, then item_id",
        description="order of items that share a SID; item rows are sorted by SID, then by this",
    )
    files: dict[str, FileEntry] = Field(description="every file but the manifest; paths relative, '/'")
    provenance: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict, description="headline metrics and baselines")

    @model_validator(mode="after")
    def _levels_fit_the_vocabulary(self) -> Manifest:
        taken: list[tuple[int, int, str]] = []
        for level in self.levels:
            end = level.first_token_id + level.codebook_size
            if end > self.vocab_size:
                raise ValueError(
                    f"level '{level.letter}' uses token ids up to {end - 1}, "
                    f"but the model has only {self.vocab_size} rows"
                )
            taken.append((level.first_token_id, end, level.letter))
        taken.sort()
        for (_, end, before), (start, _, after) in itertools.pairwise(taken):
            if start < end:
                raise ValueError(f"the token ids of levels '{before}' and '{after}' overlap")
        return self

    @model_validator(mode="after")
    def _context_has_a_place(self) -> Manifest:
        if self.context_trained and self.prompt.context is None:
            raise ValueError("context_trained is set, but the prompt has no place for free text")
        return self

    @property
    def num_levels(self) -> int:
        """L, the length of every semantic ID."""
        return len(self.levels)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of every level."""
        return tuple(level.codebook_size for level in self.levels)

    @property
    def first_token_ids(self) -> tuple[int, ...]:
        """Token id of code 0 of every level."""
        return tuple(level.first_token_id for level in self.levels)

    def tokens_of(self, codes: np.ndarray) -> np.ndarray:
        """SID codes -> SID token ids.

        Args:
            codes: Shape: (..., L), integers in [0, K_level).

        Returns:
            Token ids. Shape: (..., L), int64.
        """
        return np.asarray(codes, dtype=np.int64) + np.asarray(self.first_token_ids, dtype=np.int64)

    def spell(self, codes: np.ndarray) -> str:
        """One semantic ID for people, e.g. `<a_12><b_7><c_200>`. Shape of codes: (L,)."""
        return "".join(
            f"<{level.letter}_{int(code)}>" for level, code in zip(self.levels, codes, strict=True)
        )

    def bundle_id(self) -> str:
        """Content address: the first 16 hex digits of the SHA-256 of the canonical manifest."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Canonical JSON, the bytes that are hashed and stored."""
        return self.model_dump_json(indent=2) + "\n"
