"""The whole way of a new item: text -> vector -> codes -> a semantic ID of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from service.errors import BundleError
from service.semantic_ids.assignment import SidAssigner
from service.semantic_ids.codebooks import Codebooks
from service.semantic_ids.item_text import ItemTextConfig, item_text
from service.semantic_ids.text_encoder import TextEncoder, load_encoder


@dataclass(frozen=True, eq=False)
class SemanticIdTokenizer:
    """What `tokenizer/` of a bundle holds.

    Attributes:
        encoder: text to vector.
        text: what of an item the encoder reads.
        codebooks: vector to codes.
        codebook_sizes: K of every level of the SIDs, an extra level for collisions included.
    """

    encoder: TextEncoder
    text: ItemTextConfig
    codebooks: Codebooks
    codebook_sizes: tuple[int, ...]

    @classmethod
    def load(cls, directory: Path, *, model: str | Path | None = None) -> SemanticIdTokenizer:
        """Read encoder/, codebooks.safetensors and levels.json.

        Args:
            directory: a bundle's `tokenizer/`.
            model: see `load_encoder`.

        Raises:
            BundleError: something is missing, damaged, or does not fit the rest.
        """
        codebooks = Codebooks.load(directory / "codebooks.safetensors")
        encoder = load_encoder(directory / "encoder", model=model)
        try:
            text = ItemTextConfig.model_validate_json((directory / "encoder" / "text.json").read_bytes())
            levels = json.loads((directory / "levels.json").read_text(encoding="utf-8"))
            sizes = tuple(int(level["codebook_size"]) for level in levels)
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise BundleError(f"the tokenizer in {directory} cannot be read ({error})") from error
        width = codebooks.input_dim
        if encoder.dim != width:
            raise BundleError(
                f"the tokenizer in {directory} is inconsistent: vectors of width {encoder.dim}, "
                f"codebooks of width {width}; export the bundle again"
            )
        return cls(encoder, text, codebooks, sizes)

    def vectors(self, items: Sequence[tuple[str, str, str]]) -> np.ndarray:
        """Vectors, in the codebooks' space, of items given as (title, description, metadata as JSON text).

        Shape: (N, D), float32.
        """
        return self.codebooks.project(self.encoder.transform([item_text(*item, self.text) for item in items]))

    def assigner(self, taken: np.ndarray) -> SidAssigner:
        """The way to free SIDs, given those in use. Shape of taken: (N, L)."""
        try:
            return SidAssigner(self.codebooks, self.codebook_sizes, taken)
        except ValueError as error:
            raise BundleError(f"new items cannot be given semantic IDs: {error}") from error
