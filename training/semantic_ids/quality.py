"""How good semantic IDs are, in numbers and in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from service.semantic_ids.codebooks import Codebooks
from training.semantic_ids.collisions import buckets, unique_share

_NUM_NEIGHBOURS = 10
_NUM_PROBES = 2000


def describe(
    codes: np.ndarray,
    raw_codes: np.ndarray,
    vectors: np.ndarray,
    codebooks: Codebooks,
    sequences: pl.Series,
) -> dict[str, Any]:
    """The quality report.

    Args:
        codes: final SIDs. Shape: (N, L).
        raw_codes: before collision handling. Shape: (N, L0).
        vectors: what was quantized. Shape: (N, D).
        codebooks: of the first levels.
        sequences: training sequences.

    Returns:
        unique shares, the largest bucket before and after, the share of the vectors' variance that
        the codes explain, how often an item's nearest neighbours share its first code, how often
        items that follow each other do, and entropy (bits) and dead codes per level.
    """
    centred = vectors - vectors.mean(0)
    error = vectors - codebooks.reconstruct(raw_codes[:, : len(codebooks.levels)])
    return {
        "num_items": len(codes),
        "num_levels": codes.shape[1],
        "unique_before": round(unique_share(raw_codes), 4),
        "unique_after": round(unique_share(codes), 4),
        "largest_bucket_before": max(len(bucket) for bucket in buckets(raw_codes)),
        "largest_bucket_after": max(len(bucket) for bucket in buckets(codes)),
        "variance_explained": round(1 - float(np.square(error).sum() / np.square(centred).sum()), 4),
        "neighbours_share_first_code": round(_neighbour_purity(vectors, codes[:, 0]), 4),
        "successors_share_first_code": round(_successor_purity(sequences, codes[:, 0]), 4),
        "levels": [_level(codes[:, level]) for level in range(codes.shape[1])],
    }


def _level(column: np.ndarray) -> dict[str, Any]:
    counts = np.bincount(column)
    shares = counts[counts > 0] / counts.sum()
    return {
        "codebook_size": len(counts),
        "dead_codes": int((counts == 0).sum()),
        "entropy_bits": round(float(-(shares * np.log2(shares)).sum()), 3),
        "largest_code": int(counts.max()),
    }


def _neighbour_purity(vectors: np.ndarray, first: np.ndarray) -> float:
    probes = np.random.default_rng(0).permutation(len(vectors))[:_NUM_PROBES]
    nearness = vectors[probes] @ vectors.T - np.square(vectors).sum(1) / 2
    nearness[np.arange(len(probes)), probes] = -np.inf
    count = min(_NUM_NEIGHBOURS, len(vectors) - 1)
    if count < 1:
        return 1.0
    neighbours = np.argpartition(-nearness, count - 1, axis=1)[:, :count]
    return float((first[neighbours] == first[probes, None]).mean())


def _successor_purity(sequences: pl.Series, first: np.ndarray) -> float:
    lengths = sequences.list.len().to_numpy()
    items = sequences.explode().to_numpy()
    user = np.repeat(np.arange(len(lengths)), lengths)
    follows = (user[:-1] == user[1:]) & (items[:-1] != items[1:])
    return float((first[items[:-1]] == first[items[1:]])[follows].mean()) if follows.any() else 0.0


def draw(codes: np.ndarray, path: Path) -> None:
    """Picture: items per code, most used first, one panel per level."""
    from matplotlib.figure import Figure

    num_levels = codes.shape[1]
    figure = Figure(figsize=(3.2 * num_levels, 2.8), layout="constrained")
    axes = figure.subplots(1, num_levels, squeeze=False)[0]
    for level, axis in enumerate(axes):
        counts = np.sort(np.bincount(codes[:, level]))[::-1]
        axis.bar(np.arange(len(counts)), counts, width=1.0, color="#3b6ea5")
        axis.set_title(f"level {'abcdefghijklmnopqrstuvwxyz'[level]}: {len(counts)} codes", fontsize=9)
        axis.set_xlabel("codes, most used first", fontsize=8)
    axes[0].set_ylabel("items", fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
