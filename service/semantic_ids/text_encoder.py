"""What turns an item's text into a vector: one protocol, and the loader for whatever a bundle holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from service.errors import BundleError


class TextEncoder(Protocol):
    """Texts to vectors; the same text always gives the same vector."""

    @property
    def dim(self) -> int:
        """Width of the vectors, D."""
        ...

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts. Shape: (N, D), float32; the zero vector where nothing is known."""
        ...


def load_encoder(directory: Path, *, model: str | Path | None = None) -> TextEncoder:
    """Open a saved encoder of any kind.

    Args:
        directory: holds encoder.json.
        model: where the weights of a transformer lie now, if they are not shipped and not where
            encoder.json says.

    Raises:
        BundleError: nothing is there, it is damaged, or its weights cannot be had.
    """
    path = directory / "encoder.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(f"the text encoder {path} cannot be read ({error})") from error
    if kind == "tfidf_svd":
        from service.semantic_ids.tfidf_encoder import TfidfEncoder

        return TfidfEncoder.load(directory)
    if kind in ("transformer", "base_lm"):
        from service.semantic_ids.transformer_encoder import TransformerEncoder

        return TransformerEncoder.load(directory, model=model)
    raise BundleError(f"{path} names the unknown kind {kind!r}; use a release that knows it")
