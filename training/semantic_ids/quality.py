"""How good semantic IDs are, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from service.bundle.manifest import LETTERS
from service.semantic_ids.codebooks import Codebooks
from service.semantic_ids.mlp import Mlp
from training.semantic_ids.collisions import bucket_sizes, unique_share

_NUM_NEIGHBOURS = 10
_NUM_PROBES = 2000


def describe(
    codes: np.ndarray,
    raw_codes: np.ndarray,
    vectors: np.ndarray,
    codebooks: Codebooks,
    sequences: pl.Series,
    *,
    decode: Mlp | None = None,
) -> dict[str, Any]:
    """The quality report.

    Args:
        codes: final SIDs. Shape: (N, L).
        raw_codes: before collision handling. Shape: (N, L0).
        vectors: of the items, before any encoder of the codebooks. Shape: (N, D).
        codebooks: of the first levels.
        sequences: training sequences.
        decode: codebooks' space -> vectors; None where they are the same (residual k-means).

    Returns:
        unique shares, moved items, the largest bucket before and after, the share of the vectors'
        variance that the codes explain before and after, the mean cosine between a vector and what
        its codes say of it, how often an item's nearest neighbours
        share its first code, how often items that follow each other do, each beside what chance
        would give; and the numbers of every level.
    """
    reconstruction = Reconstruction(vectors, codebooks, decode or Mlp())
    sequence_pairs = successors(sequences)
    neighbour_pairs = nearest_pairs(vectors)
    num_books = len(codebooks.levels)
    levels = [
        _level(level, codes, raw_codes, reconstruction, neighbour_pairs, sequence_pairs)
        for level in range(codes.shape[1])
    ]
    before, after = bucket_sizes(raw_codes), bucket_sizes(codes)
    return {
        "num_items": len(codes),
        "num_levels": codes.shape[1],
        "unique_before": round(unique_share(raw_codes), 4),
        "unique_after": round(unique_share(codes), 4),
        "largest_bucket_before": int(before.max()),
        "largest_bucket_after": int(after.max()),
        "moved_items": int((codes[:, : raw_codes.shape[1]] != raw_codes).any(1).sum()),
        "variance_explained": reconstruction.explained(raw_codes[:, :num_books]),
        "variance_explained_after": reconstruction.explained(codes[:, :num_books]),
        "cosine_after": reconstruction.cosine(codes[:, :num_books]),
        "neighbours_share_first_code": levels[0]["neighbours_share_prefix"],
        "neighbours_by_chance": round(_chance(codes[:, :1], np.arange(len(codes))), 4),
        "successors_share_first_code": levels[0]["successors_share_prefix"],
        "successors_by_chance": round(_chance(codes[:, :1], sequence_pairs[1]), 4),
        "levels": levels,
    }


def _level(
    level: int,
    codes: np.ndarray,
    raw_codes: np.ndarray,
    reconstruction: Reconstruction,
    neighbour_pairs: tuple[np.ndarray, np.ndarray],
    sequence_pairs: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """One level by itself, and the prefixes that end with it."""
    column, prefix = codes[:, level], codes[:, : level + 1]
    books = reconstruction.codebooks.levels
    has_book = level < len(books)
    size = len(books[level]) if has_book else int(column.max()) + 1
    counts = np.bincount(column, minlength=size)
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log2(shares)).sum())
    return {
        "letter": LETTERS[level],
        "codebook_size": len(counts),
        "dead_codes": int((counts == 0).sum()),
        "entropy_bits": round(entropy, 3),
        "evenness": round(entropy / np.log2(len(counts)), 4) if len(counts) > 1 else 1.0,
        "largest_code": int(counts.max()),
        "distinct_prefixes": len(bucket_sizes(prefix)),
        "variance_explained": reconstruction.explained(raw_codes[:, : level + 1]) if has_book else None,
        "neighbours_share_prefix": _agreement(prefix, neighbour_pairs),
        "successors_share_prefix": _agreement(prefix, sequence_pairs),
    }


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """How well codes tell the vectors they were made from.

    Attributes:
        vectors: Shape: (N, D).
        codebooks: of the codes.
        decode: codebooks' space -> vectors.
    """

    vectors: np.ndarray
    codebooks: Codebooks
    decode: Mlp

    def explained(self, codes: np.ndarray) -> float:
        """Share of the vectors' variance that codes reconstruct. Shape of codes: (N, at most L)."""
        variance = float(np.square(self.vectors - self.vectors.mean(0)).sum())
        error = float(np.square(self.vectors - self._decoded(codes)).sum())
        return round(1 - error / variance, 4) if variance > 0 else 1.0

    def cosine(self, codes: np.ndarray) -> float:
        """Mean cosine between vector and reconstruction, in [-1, 1]."""
        decoded = self._decoded(codes)
        lengths = np.linalg.norm(self.vectors, axis=1) * np.linalg.norm(decoded, axis=1)
        cosines = (self.vectors * decoded).sum(1) / np.maximum(lengths, 1e-12)
        return round(float(cosines.mean()), 4)

    def _decoded(self, codes: np.ndarray) -> np.ndarray:
        return self.decode(self.codebooks.reconstruct(codes))


def nearest_pairs(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sample of items beside each of their nearest neighbours. Shape of each: (P,), int64."""
    count = min(_NUM_NEIGHBOURS, len(vectors) - 1)
    probes = np.random.default_rng(0).permutation(len(vectors))[:_NUM_PROBES]
    if count < 1:
        return probes[:0], probes[:0]
    half_norms = np.square(vectors).sum(1) / 2
    found = []
    for chunk in np.array_split(probes, max(1, len(probes) * len(vectors) // 2**24)):
        nearness = vectors[chunk] @ vectors.T - half_norms
        nearness[np.arange(len(chunk)), chunk] = -np.inf
        found.append(np.argpartition(-nearness, count - 1, axis=1)[:, :count])
    return np.repeat(probes, count), np.concatenate(found).ravel()


def successors(sequences: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Items beside the different item that came next, over all sequences. Shape of each: (P,), int64."""
    lengths = sequences.list.len().to_numpy()
    items = sequences.explode().drop_nulls().to_numpy().astype(np.int64)
    user = np.repeat(np.arange(len(lengths)), lengths)
    follows = (user[:-1] == user[1:]) & (items[:-1] != items[1:])
    return items[:-1][follows], items[1:][follows]


def _agreement(prefixes: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> float:
    """Share of pairs with equal codes. Shape of prefixes: (N, M)."""
    if not len(pairs[0]):
        return 0.0
    return round(float((prefixes[pairs[0]] == prefixes[pairs[1]]).all(1).mean()), 4)


def _chance(prefixes: np.ndarray, items: np.ndarray) -> float:
    """How often two items drawn as in `items` share their codes."""
    if not len(items):
        return 0.0
    counts = bucket_sizes(prefixes[items])
    return float(np.square(counts / counts.sum()).sum())
