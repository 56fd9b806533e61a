"""Give a new item a semantic ID that no live item has, from frozen codebooks.

The nearest free code under the nearest prefix wins; where a prefix is full, the next-nearest prefix
is tried. Items are served in the order they come, so the same calls always give the same SIDs.

Shapes: N items, L levels of the SIDs, D width of the vectors, P prefixes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from service.errors import CatalogueFull
from service.semantic_ids.codebooks import Codebooks

_CHUNK = 1024  # vectors compared with the centroids at once
# Nearest prefixes that are tried, in rounds; most items need the first only.
_ROUNDS = (1, 32, 1024, 16_384)


class SidAssigner:
    """The live set of taken SIDs, and the way to a free one.

    Levels beyond the codebooks (the extra level that numbers collisions) have no centroids: the
    lowest free number is used there. Only one such level may exist.

    Args:
        codebooks: the bundle's.
        codebook_sizes: K of every level of the SIDs, the extra one included.
        taken: SIDs in use, duplicates allowed. Shape: (N, L), integers.

    Raises:
        ValueError: sizes, codebooks and SIDs do not fit each other.
    """

    def __init__(self, codebooks: Codebooks, codebook_sizes: Sequence[int], taken: np.ndarray) -> None:
        self._books = codebooks
        self._sizes = tuple(int(size) for size in codebook_sizes)
        num_books = len(codebooks.levels)
        if len(self._sizes) - num_books not in (0, 1):
            raise ValueError(f"{num_books} codebooks do not fit SIDs of {len(self._sizes)} levels")
        if any(size < len(book) for size, book in zip(self._sizes, codebooks.levels, strict=False)):
            raise ValueError(f"codebook sizes {self._sizes} are smaller than the codebooks")
        if math.prod(self._sizes) >= 2**63:
            raise ValueError(f"codebook sizes {self._sizes} name more SIDs than 64 bits can count")
        self._has_extra_level = len(self._sizes) > num_books
        self._taken = np.unique(self._keys(taken))
        # What changed since: prefix key -> last code -> is it taken?
        self._changes: dict[int, dict[int, bool]] = {}

    def is_taken(self, codes: Sequence[int]) -> bool:
        """True if a live item has this SID."""
        prefix, last = self._split(codes)
        changed = self._changes.get(prefix, {}).get(last)
        if changed is not None:
            return changed
        key = prefix * self._sizes[-1] + last
        at = int(np.searchsorted(self._taken, key))
        return at < len(self._taken) and int(self._taken[at]) == key

    def claim(self, codes: Sequence[int]) -> None:
        """Mark a SID as in use."""
        self._set(codes, True)

    def release(self, codes: Sequence[int]) -> None:
        """Mark a SID as free again; call it when no live item has it any more."""
        self._set(codes, False)

    def assign(self, vectors: np.ndarray) -> np.ndarray:
        """Choose and claim a SID for every vector, in order.

        Args:
            vectors: in the codebooks' space. Shape: (N, D), float32.

        Returns:
            SIDs that were free. Shape: (N, L), int32.

        Raises:
            CatalogueFull: every SID is taken.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        chosen = np.empty((len(vectors), len(self._sizes)), dtype=np.int32)
        for start in range(0, len(vectors), _CHUNK):
            chunk = vectors[start : start + _CHUNK]
            prefixes, residuals = self._nearest_prefix_of_each(chunk)
            for row, prefix in enumerate(map(tuple, prefixes.tolist())):
                last = self._free_code(prefix, residuals[row])
                codes = self._assign_one(chunk[row]) if last is None else (*prefix, last)
                self.claim(codes)
                chosen[start + row] = codes
        return chosen

    def _nearest_prefix_of_each(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first thing that `_assign_one` tries, for many vectors at once.

        Returns:
            Prefixes, shape (N, L - 1), and residuals, shape (N, D).
        """
        prefixes = np.empty((len(vectors), len(self._sizes) - 1), dtype=np.int64)
        for level in range(prefixes.shape[1]):
            prefixes[:, level] = self._books.distances(level, vectors).argmin(axis=1)
            vectors = vectors - self._books.levels[level][prefixes[:, level]]
        return prefixes, vectors

    def _assign_one(self, vector: np.ndarray) -> tuple[int, ...]:
        tried: set[tuple[int, ...]] = set()
        for width in _ROUNDS:
            prefixes, residuals = self._nearest_prefixes(vector, width)
            for prefix, residual in zip(map(tuple, prefixes.tolist()), residuals, strict=True):
                if prefix in tried:
                    continue
                tried.add(prefix)
                if (last := self._free_code(prefix, residual)) is not None:
                    return (*prefix, last)
            if len(prefixes) < width:
                break  # these were all there are
        for codes in self._every_sid():  # far from everything, but valid
            if not self.is_taken(codes):
                return codes
        raise CatalogueFull(
            f"all semantic IDs of {' x '.join(map(str, self._sizes))} codes are taken; "
            "train a bundle with more levels or larger codebooks"
        )

    def _nearest_prefixes(self, vector: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Beam search by residual length over all levels but the last of the SID.

        Returns:
            Prefixes, nearest first, shape (P, L - 1), P <= width, and residuals, shape (P, D).
        """
        prefixes = np.zeros((1, 0), dtype=np.int64)
        residuals = vector[None]
        for level in range(len(self._sizes) - 1):
            distances = self._books.distances(level, residuals)
            order = np.argsort(distances, axis=None, kind="stable")[:width]
            order = order[np.isfinite(distances.ravel()[order])]
            parents, codes = np.divmod(order, distances.shape[1])
            prefixes = np.concatenate([prefixes[parents], codes[:, None]], axis=1)
            residuals = residuals[parents] - self._books.levels[level][codes]
        return prefixes, residuals

    def _free_code(self, prefix: tuple[int, ...], residual: np.ndarray) -> int | None:
        """Nearest free last code under a prefix, or None if the prefix is full."""
        is_taken = self._taken_under(prefix)
        if self._has_extra_level:
            distances = np.arange(self._sizes[-1], dtype=np.float64)
        else:
            distances = np.full(self._sizes[-1], np.inf)
            distances[: len(self._books.levels[-1])] = self._books.distances(
                len(self._sizes) - 1, residual[None]
            )[0]
        distances[is_taken] = np.inf
        best = int(distances.argmin())
        return best if np.isfinite(distances[best]) else None

    def _taken_under(self, prefix: Sequence[int]) -> np.ndarray:
        """Which last codes are in use under a prefix. Shape: (K_last,), bool."""
        size = self._sizes[-1]
        key, _ = self._split((*prefix, 0))
        start, end = np.searchsorted(self._taken, [key * size, (key + 1) * size])
        is_taken = np.zeros(size, dtype=bool)
        is_taken[self._taken[start:end] - key * size] = True
        for code, taken in self._changes.get(key, {}).items():
            is_taken[code] = taken
        return is_taken

    def _every_sid(self) -> Iterator[tuple[int, ...]]:
        choices = [self._books.used_codes(level).tolist() for level in range(len(self._books.levels))]
        if self._has_extra_level:
            choices.append(list(range(self._sizes[-1])))
        return itertools.product(*choices)

    def _set(self, codes: Sequence[int], is_taken: bool) -> None:
        prefix, last = self._split(codes)
        self._changes.setdefault(prefix, {})[last] = is_taken

    def _split(self, codes: Sequence[int]) -> tuple[int, int]:
        """Key of the prefix, and the last code."""
        if len(codes) != len(self._sizes) or any(
            not 0 <= code < size for code, size in zip(codes, self._sizes, strict=True)
        ):
            raise ValueError(f"{tuple(codes)} is no SID of codebooks of {self._sizes} codes")
        key = 0
        for code, size in zip(codes[:-1], self._sizes[:-1], strict=True):
            key = key * size + int(code)
        return key, int(codes[-1])

    def _keys(self, codes: np.ndarray) -> np.ndarray:
        """SIDs as single numbers. Shape: (N, L) -> (N,), int64."""
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != len(self._sizes):
            raise ValueError(f"SIDs of shape {codes.shape} do not fit {len(self._sizes)} levels")
        if len(codes) and ((codes < 0).any() or (codes >= np.array(self._sizes)).any()):
            raise ValueError(f"some SIDs lie outside codebooks of {self._sizes} codes")
        keys = np.zeros(len(codes), dtype=np.int64)
        for level, size in enumerate(self._sizes):
            keys = keys * size + codes[:, level]
        return keys
