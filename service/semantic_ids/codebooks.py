"""The centroids of every level, and how a vector becomes codes: nearest centroid, then the residual."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from service.errors import BundleError

_CHUNK_ENTRIES = 2**22


@dataclass(frozen=True, eq=False)
class Codebooks:
    """Residual codebooks.

    Attributes:
        levels: centroids of every level. Shape of each: (K_level, D), float32.
    """

    levels: tuple[np.ndarray, ...]

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quantize vectors level by level.

        Args:
            vectors: Shape: (N, D), float32.

        Returns:
            Codes, shape (N, L), int32, and what the last level has to explain (the residual before
            it), shape (N, D), float32.
        """
        residual = np.array(vectors, dtype=np.float32)
        before_last = residual
        codes = np.empty((len(residual), len(self.levels)), dtype=np.int32)
        for level, centroids in enumerate(self.levels):
            before_last = residual
            codes[:, level] = nearest(residual, centroids)
            residual = residual - centroids[codes[:, level]]
        return codes, before_last

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """Sum of the centroids that codes name. Shape: (N, L) -> (N, D), float32."""
        return np.sum([book[codes[:, level]] for level, book in enumerate(self.levels)], axis=0)

    def save(self, path: Path) -> None:
        """Write one tensor per level, `level_0`, `level_1`, ..."""
        arrays = {f"level_{n}": np.ascontiguousarray(book) for n, book in enumerate(self.levels)}
        save_file(arrays, path)

    @classmethod
    def load(cls, path: Path) -> Codebooks:
        """Read saved codebooks.

        Raises:
            BundleError: the file is missing or holds something else.
        """
        try:
            arrays = load_file(path)
            return cls(tuple(arrays[f"level_{n}"] for n in range(len(arrays))))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise BundleError(f"the codebooks in {path} cannot be read ({error})") from error


def nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid, the lowest on ties. Shape: (N, D), (K, D) -> (N,)."""
    half_norms = np.square(centroids).sum(1) / 2
    step = max(1, _CHUNK_ENTRIES // len(centroids))
    found = [
        (half_norms - points[at : at + step] @ centroids.T).argmin(1) for at in range(0, len(points), step)
    ]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)
