"""Text to vector without weights: TF-IDF and a truncated SVD, shipped whole inside the bundle.

The vector may have a second, collaborative part: what the users' histories say of an item. For a
new item, known by its text alone, that part is predicted from the text by a linear map fitted with
the encoder.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from service.errors import BundleError
from service.semantic_ids.sparse import SparseMatrix

_WORD = re.compile(r"[a-z0-9]+(?:[.'/-][a-z0-9]+)*")
_ABOUT, _ARRAYS = "encoder.json", "encoder.safetensors"


def terms(text: str, max_words: int) -> list[str]:
    """Words of a text and their runs up to `max_words` words, in lower case."""
    words = _WORD.findall(text.lower())
    found = list(words)
    for size in range(2, max_words + 1):
        found += [" ".join(words[at : at + size]) for at in range(len(words) - size + 1)]
    return found


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a zero row stays zero. Shape: (N, D), float32."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class TfidfEncoder:
    """A fitted encoder. M terms, D text dimensions, C collaborative dimensions.

    Attributes:
        vocabulary: term -> column.
        max_words: longest run of words that is a term.
        idf: weight of every term. Shape: (M,), float32.
        components: term directions. Shape: (M, D), float32.
        taste_map: text part -> collaborative part. Shape: (D, C), float32; C may be 0.
        taste_weight: length of the collaborative part against a text part of length 1.
    """

    vocabulary: dict[str, int]
    max_words: int
    idf: np.ndarray
    components: np.ndarray
    taste_map: np.ndarray
    taste_weight: float = 0.0

    def term_matrix(self, texts: Sequence[str]) -> SparseMatrix:
        """TF-IDF rows of length 1: (1 + log tf) * idf. Shape: (N, M)."""
        rows: list[dict[int, float]] = []
        for text in texts:
            counts = Counter(terms(text, self.max_words))
            row = {self.vocabulary[t]: 1 + np.log(n) for t, n in counts.items() if t in self.vocabulary}
            weights = np.fromiter(row.values(), dtype=np.float64) * self.idf[list(row)]
            length = max(float(np.linalg.norm(weights)), 1e-12)
            rows.append(dict(zip(row, (weights / length).tolist(), strict=True)))
        return SparseMatrix.from_rows(rows, len(self.vocabulary))

    def text_part(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of the text alone. Shape: (N, D), float32."""
        return unit_rows(self.term_matrix(texts).times(torch.from_numpy(self.components)).numpy())

    def join(self, text_part: np.ndarray, taste_part: np.ndarray) -> np.ndarray:
        """Both parts side by side. Shape: (N, D), (N, C) -> (N, D + C), float32."""
        return np.concatenate([text_part, self.taste_weight * unit_rows(taste_part)], axis=1)

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of items known by their text alone. Shape: (N, D + C), float32."""
        text_part = self.text_part(texts)
        return self.join(text_part, text_part @ self.taste_map)

    def save(self, directory: Path) -> None:
        """Write `encoder.json` (the vocabulary) and `encoder.safetensors` (the arrays)."""
        directory.mkdir(parents=True, exist_ok=True)
        about = {
            "kind": "tfidf_svd",
            "max_words": self.max_words,
            "taste_weight": self.taste_weight,
            "vocabulary": sorted(self.vocabulary, key=self.vocabulary.__getitem__),
        }
        (directory / _ABOUT).write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")
        arrays = {"idf": self.idf, "components": self.components, "taste_map": self.taste_map}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / _ARRAYS)

    @classmethod
    def load(cls, directory: Path) -> TfidfEncoder:
        """Read a saved encoder.

        Raises:
            BundleError: a file is missing or does not fit the other.
        """
        try:
            about = json.loads((directory / _ABOUT).read_text(encoding="utf-8"))
            arrays = load_file(directory / _ARRAYS)
            vocabulary = {term: column for column, term in enumerate(about["vocabulary"])}
            encoder = cls(
                vocabulary=vocabulary,
                max_words=about["max_words"],
                taste_weight=about["taste_weight"],
                **arrays,
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise BundleError(f"the text encoder in {directory} cannot be read ({error})") from error
        if len(vocabulary) != len(encoder.idf) or len(vocabulary) != len(encoder.components):
            raise BundleError(f"the text encoder in {directory} is inconsistent; export the bundle again")
        return encoder
