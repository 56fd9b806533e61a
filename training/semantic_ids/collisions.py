"""Give every item a semantic ID of its own."""

from __future__ import annotations

import math

import numpy as np
import torch

from service.semantic_ids.assignment import SidAssigner
from service.semantic_ids.codebooks import Codebooks
from training.errors import TrainingError
from training.semantic_ids.sinkhorn import balanced_codes

_EPSILON, _ITERATIONS = 0.003, 50  # LC-Rec's


def unique_share(codes: np.ndarray) -> float:
    """Distinct SIDs over items. Shape: (N, L)."""
    return len(np.unique(codes, axis=0)) / len(codes)


def bucket_sizes(codes: np.ndarray) -> np.ndarray:
    """Items of every distinct SID. Shape: (N, L) -> (number of distinct SIDs,)."""
    return np.unique(codes, axis=0, return_counts=True)[1]


def buckets(codes: np.ndarray) -> list[np.ndarray]:
    """Items by equal codes, each in item order, buckets in code order. Shape: (N, M)."""
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    return np.split(order, np.cumsum(counts)[:-1])


def shares_with_others(codes: np.ndarray) -> np.ndarray:
    """True for items whose codes another item has too. Shape: (N, M) -> (N,), bool."""
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return counts[inverse.ravel()] > 1


def reassign(codes: np.ndarray, vectors: np.ndarray, codebooks: Codebooks) -> np.ndarray:
    """Move colliding items to free codes nearby.

    Within a prefix that holds a collision the pairs (item, last code) are taken nearest first. Where
    a prefix holds more items than the last level has codes, the items left over go to the nearest
    prefix with room, as a new item would.

    Args:
        codes: Shape: (N, L).
        vectors: in the codebooks' space. Shape: (N, D).
        codebooks: of the codes.

    Returns:
        Unique codes. Shape: (N, L), int32.

    Raises:
        TrainingError: there are more items than semantic IDs.
    """
    sizes = [len(book) for book in codebooks.levels]
    usable = [len(codebooks.used_codes(level)) for level in range(len(sizes))]
    if len(codes) > math.prod(usable):
        raise TrainingError(
            f"{len(codes)} items do not fit {math.prod(usable)} semantic IDs "
            f"({' x '.join(map(str, usable))} codes; a level has at most one per distinct vector); raise "
            "semantic_ids.num_levels or semantic_ids.codebook_size, or set "
            'semantic_ids.collisions = "extra_level"'
        )
    codes = codes.astype(np.int32).copy()
    homeless: list[int] = []
    prefixes = codes[:, :-1]
    crowded = _in_crowded_prefix(codes)
    for members in buckets(prefixes[crowded]) if crowded.any() else []:
        bucket = np.flatnonzero(crowded)[members]
        residuals = vectors[bucket] - codebooks.reconstruct(prefixes[bucket])
        homeless += _settle(codes, bucket, codebooks.distances(len(sizes) - 1, residuals))
    if homeless:
        settled = np.delete(codes, homeless, axis=0)
        codes[homeless] = SidAssigner(codebooks, sizes, settled).assign(vectors[homeless])
    return codes


def spread_evenly(codes: np.ndarray, vectors: np.ndarray, codebooks: Codebooks) -> np.ndarray:
    """Give the items of every crowded prefix last codes by a Sinkhorn assignment.

    Far fewer collide afterwards than before, and nobody is moved further than evenness asks for;
    `reassign` settles the rest.

    Args:
        codes: Shape: (N, L).
        vectors: in the codebooks' space. Shape: (N, D).
        codebooks: of the codes.

    Returns:
        Shape: (N, L), int32.
    """
    codes = codes.astype(np.int32).copy()
    prefixes, last = codes[:, :-1], len(codebooks.levels) - 1
    crowded = np.flatnonzero(_in_crowded_prefix(codes))
    used = codebooks.used_codes(last)
    for members in buckets(prefixes[crowded]) if len(crowded) else []:
        bucket = crowded[members]
        residuals = vectors[bucket] - codebooks.reconstruct(prefixes[bucket])
        distances = torch.from_numpy(codebooks.distances(last, residuals)[:, used]).clamp(min=0)
        found = balanced_codes(distances, epsilon=_EPSILON, num_iterations=_ITERATIONS)
        codes[bucket, -1] = used[found.numpy()]
    return codes


def _in_crowded_prefix(codes: np.ndarray) -> np.ndarray:
    """True for items whose prefix (all codes but the last) holds a collision. Shape: (N, L) -> (N,)."""
    _, prefix_of = np.unique(codes[:, :-1], axis=0, return_inverse=True)
    prefix_of = prefix_of.ravel() if codes.shape[1] > 1 else np.zeros(len(codes), dtype=np.int64)
    has_collision = np.zeros(prefix_of.max() + 1, dtype=bool)
    has_collision[prefix_of[shares_with_others(codes)]] = True
    return has_collision[prefix_of]


def _settle(codes: np.ndarray, bucket: np.ndarray, distances: np.ndarray) -> list[int]:
    """Match items of one prefix to last codes, nearest pairs first; returns the items left over."""
    num_items, num_codes = distances.shape
    free_item, free_code = np.ones(num_items, dtype=bool), np.ones(num_codes, dtype=bool)
    free_code[~np.isfinite(distances[0])] = False
    for pair in np.argsort(distances, axis=None, kind="stable"):
        item, code = divmod(int(pair), num_codes)
        if free_item[item] and free_code[code]:
            codes[bucket[item], -1] = code
            free_item[item] = free_code[code] = False
            if not (free_item.any() and free_code.any()):
                break
    return bucket[free_item].tolist()


def number_collisions(codes: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """Append a level that numbers items of equal codes, the most popular one 0.

    Args:
        codes: Shape: (N, L).
        popularity: Shape: (N,).

    Returns:
        Shape: (N, L + 1), int32.
    """
    order = np.lexsort([-popularity, *codes.T[::-1]])  # equal codes side by side, most popular first
    ordered = codes[order]
    is_first = np.ones(len(codes), dtype=bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(1)
    position = np.arange(len(codes))
    extra = np.empty(len(codes), dtype=np.int32)
    extra[order] = position - np.maximum.accumulate(np.where(is_first, position, 0))
    return np.concatenate([codes.astype(np.int32), extra[:, None]], axis=1)
