"""Text to vector without weights: TF-IDF and a truncated SVD, shipped whole inside the bundle.

The vector may have a second, collaborative part: what the users' histories say of an item. For a
new item, known by its text alone, that part is predicted from the text by a linear map fitted with
the encoder.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from service.errors import BundleError
from service.semantic_ids.sparse import SparseMatrix
from service.semantic_ids.terms import terms

KIND = "tfidf_svd"
_ABOUT, _ARRAYS = "encoder.json", "encoder.safetensors"


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
        max_chars: longest piece of a word that is a term; 0 for none.
    """

    vocabulary: dict[str, int]
    max_words: int
    idf: np.ndarray
    components: np.ndarray
    taste_map: np.ndarray
    taste_weight: float = 0.0
    max_chars: int = 0

    @property
    def dim(self) -> int:
        """Width of the vectors, D + C."""
        return self.components.shape[1] + self.taste_map.shape[1]

    def term_matrix(self, texts: Iterable[str]) -> SparseMatrix:
        """TF-IDF rows of length 1: (1 + log tf) * idf. Shape: (N, M)."""
        columns, counts, ends = array("q"), array("q"), array("q", [0])
        for text in texts:
            for term, count in Counter(terms(text, self.max_words, self.max_chars)).items():
                if (column := self.vocabulary.get(term)) is not None:
                    columns.append(column)
                    counts.append(count)
            ends.append(len(columns))
        row_start = np.array(ends, dtype=np.int64)
        num_rows = len(row_start) - 1
        column_of = np.array(columns, dtype=np.int64)
        weights = (1 + np.log(np.array(counts, dtype=np.float64))) * self.idf[column_of]
        row_of = np.repeat(np.arange(num_rows), np.diff(row_start))
        lengths = np.sqrt(np.bincount(row_of, np.square(weights), minlength=num_rows))
        values = (weights / np.maximum(lengths, 1e-12)[row_of]).astype(np.float32)
        return SparseMatrix(row_start, column_of, values, len(self.vocabulary))

    def text_part(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of the text alone. Shape: (N, D), float32."""
        return self.project(self.term_matrix(texts))

    def project(self, matrix: SparseMatrix) -> np.ndarray:
        """Unit vectors of TF-IDF rows. Shape: (N, M) -> (N, D), float32."""
        return unit_rows(matrix.times(torch.from_numpy(self.components)).numpy())

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
            "kind": KIND,
            "max_words": self.max_words,
            "max_chars": self.max_chars,
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
                max_chars=about.get("max_chars", 0),
                taste_weight=about["taste_weight"],
                **arrays,
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise BundleError(f"the text encoder in {directory} cannot be read ({error})") from error
        num_terms, dim = len(vocabulary), encoder.components.shape[-1]
        if (
            encoder.idf.shape != (num_terms,)
            or encoder.components.shape != (num_terms, dim)
            or encoder.taste_map.shape[:1] != (dim,)
        ):
            raise BundleError(f"the text encoder in {directory} is inconsistent; export the bundle again")
        return encoder
