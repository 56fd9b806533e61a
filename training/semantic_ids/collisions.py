"""Give every item a semantic ID of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from service.semantic_ids.codebooks import Codebooks
from training.errors import TrainingError


def unique_share(codes: np.ndarray) -> float:
    """Distinct SIDs over items. Shape: (N, L)."""
    return len(np.unique(codes, axis=0)) / len(codes)


def buckets(codes: np.ndarray) -> list[np.ndarray]:
    """Items by equal codes, each in item order, buckets in code order. Shape: (N, M)."""
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    return np.split(order, np.cumsum(counts)[:-1])


def reassign(codes: np.ndarray, vectors: np.ndarray, codebooks: Codebooks) -> np.ndarray:
    """Move colliding items to free codes nearby.

    Within a prefix the pairs (item, last code) are taken nearest first. Where a prefix holds more
    items than the last level has codes, the items left over go to the nearest prefix with room.

    Args:
        codes: Shape: (N, L).
        vectors: what was quantized. Shape: (N, D).
        codebooks: of the codes.

    Returns:
        Unique codes. Shape: (N, L), int32.

    Raises:
        TrainingError: there are more items than semantic IDs.
    """
    sizes = [len(book) for book in codebooks.levels]
    capacity = float(np.prod([float(size) for size in sizes]))
    if len(codes) > capacity:
        raise TrainingError(
            f"{len(codes)} items do not fit {capacity:.0f} semantic IDs; raise semantic_ids.num_levels or "
            "semantic_ids.codebook_size"
        )
    codes = codes.astype(np.int32).copy()
    last = codebooks.levels[-1]
    taken: dict[tuple[int, ...], set[int]] = {}
    homeless: list[int] = []
    for bucket in buckets(codes[:, :-1]):
        prefix = tuple(codes[bucket[0], :-1].tolist())
        is_settled = len(np.unique(codes[bucket, -1])) == len(bucket)
        if not is_settled:
            residual = vectors[bucket] - _prefix_vector(codebooks, prefix)
            left = _settle(codes, bucket, _squared_distances(residual, last))
            homeless += left
            bucket = np.setdiff1d(bucket, left)
        taken[prefix] = set(codes[bucket, -1].tolist())
    for item in homeless:
        prefix = next(p for p in _prefixes(vectors[item], codebooks) if len(taken.get(p, ())) < sizes[-1])
        distances = _squared_distances((vectors[item] - _prefix_vector(codebooks, prefix))[None], last)[0]
        used = taken.setdefault(prefix, set())
        code = next(int(c) for c in np.argsort(distances, kind="stable") if int(c) not in used)
        codes[item] = [*prefix, code]
        used.add(code)
    return codes


def _settle(codes: np.ndarray, bucket: np.ndarray, distances: np.ndarray) -> list[int]:
    """Match items of one prefix to last codes, nearest pairs first; returns the items left over."""
    num_items, num_codes = distances.shape
    free_item, free_code = np.ones(num_items, dtype=bool), np.ones(num_codes, dtype=bool)
    for pair in np.argsort(distances, axis=None, kind="stable"):
        item, code = divmod(int(pair), num_codes)
        if free_item[item] and free_code[code]:
            codes[bucket[item], -1] = code
            free_item[item] = free_code[code] = False
            if not (free_item.any() and free_code.any()):
                break
    return bucket[free_item].tolist()


def _prefixes(vector: np.ndarray, codebooks: Codebooks) -> Iterator[tuple[int, ...]]:
    """Prefixes from near to far: the deepest level varies first, then the one above it."""
    if len(codebooks.levels) == 1:
        yield ()
        return
    rankings: list[list[int]] = []
    residual = vector
    for book in codebooks.levels[:-1]:
        ranking = np.argsort(_squared_distances(residual[None], book)[0], kind="stable")
        rankings.append(ranking.tolist())
        residual = residual - book[ranking[0]]
    yield from itertools.product(*rankings)


def _prefix_vector(codebooks: Codebooks, prefix: tuple[int, ...]) -> np.ndarray:
    books = codebooks.levels
    parts = [books[level][code] for level, code in enumerate(prefix)]
    return np.sum(parts, axis=0) if parts else np.zeros(books[0].shape[1], dtype=np.float32)


def _squared_distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Shape: (N, D), (K, D) -> (N, K)."""
    norms = np.square(points).sum(1)[:, None] + np.square(centroids).sum(1)[None]
    return norms - 2 * points @ centroids.T


def number_collisions(codes: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """Append a level that numbers items of equal codes, the most popular one 0.

    Args:
        codes: Shape: (N, L).
        popularity: Shape: (N,).

    Returns:
        Shape: (N, L + 1), int32.
    """
    extra = np.zeros(len(codes), dtype=np.int32)
    for bucket in buckets(codes):
        if len(bucket) > 1:
            extra[bucket[np.argsort(-popularity[bucket], kind="stable")]] = np.arange(len(bucket))
    return np.concatenate([codes.astype(np.int32), extra[:, None]], axis=1)
