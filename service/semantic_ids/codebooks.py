"""The centroids of every level, and how a vector becomes codes: nearest centroid, then the residual."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from service.errors import BundleError
from service.semantic_ids.mlp import Mlp

_ENCODER = "encoder"
_CHUNK_ENTRIES = 2**22


@dataclass(frozen=True, eq=False)
class Codebooks:
    """Residual codebooks, and the network that leads to their space.

    Attributes:
        levels: centroids of every level. Shape of each: (K_level, D), float32.
        used: codes that stand for something, per level; the others have no centroid and are never
            chosen (SIDs from a file may leave codes out). Shape of each: (K_level,), bool. Empty
            means all codes.
        encoder: maps a text encoder's vectors into the codebooks' space of width D (RQ-VAE);
            without layers that space is the vectors' own (residual k-means).
    """

    levels: tuple[np.ndarray, ...]
    used: tuple[np.ndarray, ...] = ()
    encoder: Mlp = field(default_factory=Mlp)

    @property
    def input_dim(self) -> int:
        """Width of the text encoder's vectors."""
        return self.encoder.layers[0][0].shape[1] if self.encoder.layers else self.levels[0].shape[1]

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Text encoder's vectors in the codebooks' space, which all other methods read.

        Shape: (N, input_dim) -> (N, D), float32.
        """
        return self.encoder(vectors)

    def used_codes(self, level: int) -> np.ndarray:
        """Codes of a level that may be chosen, ascending. Shape: (at most K_level,), int64."""
        if not self.used:
            return np.arange(len(self.levels[level]))
        return np.flatnonzero(self.used[level])

    def distances(self, level: int, residuals: np.ndarray) -> np.ndarray:
        """Squared distances to a level's centroids, infinite for unused codes. Shape: (N, D) -> (N, K)."""
        book = self.levels[level]
        found = np.square(residuals).sum(1)[:, None] + np.square(book).sum(1)[None]
        found -= 2 * residuals @ book.T
        if self.used:
            found[:, ~self.used[level]] = np.inf
        return found

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quantize vectors level by level.

        Args:
            vectors: as `project` gives them. Shape: (N, D), float32.

        Returns:
            Codes, shape (N, L), int32, and what the last level has to explain (the residual before
            it), shape (N, D), float32.
        """
        residual = np.array(vectors, dtype=np.float32)
        before_last = residual
        codes = np.empty((len(residual), len(self.levels)), dtype=np.int32)
        for level, centroids in enumerate(self.levels):
            before_last = residual
            codes_used = self.used_codes(level)
            codes[:, level] = codes_used[nearest(residual, centroids[codes_used])]
            residual = residual - centroids[codes[:, level]]
        return codes, before_last

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """Sum of the centroids that codes name; fewer than L levels are allowed. Shape: (N, L) -> (N, D)."""
        total = np.zeros((len(codes), self.levels[0].shape[1]), dtype=np.float32)
        for level in range(min(codes.shape[1], len(self.levels))):
            total += self.levels[level][codes[:, level]]
        return total

    def save(self, path: Path) -> None:
        """Write one tensor per level, `level_0`, `level_1`, ..., and `level_0_used`, ... and the encoder's
        `encoder_0_weight`, `encoder_0_bias`, ... where there are any."""
        arrays = {f"level_{n}": np.ascontiguousarray(book) for n, book in enumerate(self.levels)}
        arrays |= {f"level_{n}_used": mask.astype(np.uint8) for n, mask in enumerate(self.used)}
        save_file(arrays | self.encoder.arrays(_ENCODER), path)

    @classmethod
    def load(cls, path: Path) -> Codebooks:
        """Read saved codebooks.

        Raises:
            BundleError: the file is missing or holds something else.
        """
        try:
            arrays = load_file(path)
            num_levels = sum(name.removeprefix("level_").isdigit() for name in arrays)
            levels = tuple(arrays[f"level_{n}"] for n in range(num_levels))
            masks = (arrays.get(f"level_{n}_used") for n in range(num_levels))
            used = tuple(mask.astype(bool) for mask in masks if mask is not None)
            encoder = Mlp.of_arrays(_ENCODER, arrays)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise BundleError(f"the codebooks in {path} cannot be read ({error})") from error
        fit = levels and all(book.ndim == 2 and book.shape[1] == levels[0].shape[1] for book in levels)
        if fit and encoder.layers:
            fit = len(encoder.layers[-1][1]) == levels[0].shape[1]
        sizes = [len(book) for book in levels]
        if not fit or (used and [len(mask) for mask in used] != sizes):
            raise BundleError(f"the codebooks in {path} do not fit each other; export the bundle again")
        return cls(levels, used, encoder)


def nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid, the lowest on ties. Shape: (N, D), (K, D) -> (N,)."""
    half_norms = np.square(centroids).sum(1) / 2
    step = max(1, _CHUNK_ENTRIES // len(centroids))
    found = [
        (half_norms - points[at : at + step] @ centroids.T).argmin(1) for at in range(0, len(points), step)
    ]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)
