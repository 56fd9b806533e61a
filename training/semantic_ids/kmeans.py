"""K-means in torch: greedy k-means++ seeding and Lloyd's iterations on samples, then on all points.

Seeding decides the quality: on clustered data random seeds left 9 % of the items with a SID of
their own where greedy k-means++ left 89 %. Where there are many points per centroid, a sample says
nearly all about where the centroids belong, so that only the last few iterations read every point.
Everything is a matrix product over chunks, so two cores manage a million points (figures:
benchmarks/README.md), and the same seed gives the same centroids.

Shapes: N points, D their width, K centroids, T candidates tried for one seed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

# Squared distances below this share of the mean squared norm are float32 noise: the same point.
SAME_POINT = 1e-6
# Entries of the distance matrix of one chunk; 8 MiB of float32 stays near the cache.
CHUNK_ENTRIES = 2**21
# After the sample an iteration over all points must gain so many times as much to be worth its time.
_TOUCH_UP = 10
_SMALL = 2**25  # entries of a matrix that one thread goes through in milliseconds


@dataclass(frozen=True)
class KMeansResult:
    """Centroids and the cell of every point.

    Attributes:
        centroids: Shape: (K, D), float32. K is below what was asked where there are fewer
            distinct points.
        codes: nearest centroid of every point. Shape: (N,), int64.
        inertia: sum of squared distances to the nearest centroid.
        num_iterations: Lloyd iterations run on all points.
    """

    centroids: Tensor
    codes: Tensor
    inertia: float
    num_iterations: int


def kmeans(
    points: Tensor,
    num_centroids: int,
    *,
    seed: int = 0,
    num_iterations: int = 25,
    seeding_sample: int = 16_384,
    points_per_centroid: int = 256,
    tolerance: float = 1e-4,
) -> KMeansResult:
    """Partition points into cells of small squared distance.

    Args:
        points: Shape: (N, D), float32, any device.
        num_centroids: K wanted.
        seed: same seed and same machine, same centroids.
        num_iterations: most Lloyd iterations on the sample, and most on all points.
        seeding_sample: points on which the seeds are chosen; never fewer than 8 per centroid.
        points_per_centroid: Lloyd's iterations begin on a sample of so many points per centroid where
            there are more; 0 = on all points at once.
        tolerance: stop when an iteration lowers the inertia by less than this share of it, or on all
            points after a sample by less than ten times this.

    Raises:
        ValueError: no points, values that are not finite, or num_centroids < 1.
    """
    if points.ndim != 2 or not len(points):
        raise ValueError(f"k-means needs points of shape (N, D) with N >= 1, not {tuple(points.shape)}")
    if num_centroids < 1:
        raise ValueError(f"k-means needs at least 1 centroid, not {num_centroids}")
    if not torch.isfinite(points).all():
        raise ValueError("k-means got points that are not finite; check the embeddings for NaN")
    points = points.float()
    # Distances are differences of large products; a mean near zero keeps float32 exact enough.
    mean = points.mean(dim=0)
    centred = points - mean
    generator = torch.Generator().manual_seed(seed)
    centroids = _seeds(centred, num_centroids, seeding_sample, generator)
    sample_size = points_per_centroid * len(centroids)
    if 0 < sample_size < len(centred):
        sample = _sample(centred, sample_size, generator)
        centroids = _lloyd(sample, centroids, num_iterations, tolerance).centroids
        tolerance *= _TOUCH_UP
    found = _lloyd(centred, centroids, num_iterations, tolerance)
    return replace(found, centroids=found.centroids + mean)


def _lloyd(points: Tensor, centroids: Tensor, num_iterations: int, tolerance: float) -> KMeansResult:
    """Assign, average, assign, ... until the gain is small."""
    norms = squared_lengths(points)
    codes, distances = nearest(points, centroids, norms)
    inertia, iteration = float(distances.double().sum()), 0
    for iteration in range(1, num_iterations + 1):  # noqa: B007 (reported after the loop)
        centroids = _means(points, codes, distances, centroids)
        codes, distances = nearest(points, centroids, norms)
        before, inertia = inertia, float(distances.double().sum())
        if before - inertia <= tolerance * before:
            break
    return KMeansResult(centroids, codes, inertia, iteration)


def _sample(points: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random points, each at most once. Shape: (N, D) -> (size, D)."""
    order = torch.randperm(len(points), generator=generator)[:size]
    return points[order.to(points.device)]


def nearest(points: Tensor, centroids: Tensor, norms: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Nearest centroid of every point.

    Args:
        points: Shape: (N, D).
        centroids: Shape: (K, D).
        norms: squared lengths of the points, if they are known. Shape: (N,).

    Returns:
        Codes, shape (N,), int64, the lowest code on ties; squared distances, shape (N,), float32, >= 0.
    """
    half_norms = centroids.square().sum(dim=1) / 2
    codes, halves = [], []
    for chunk in points.split(max(1, CHUNK_ENTRIES // len(centroids))):
        values, indices = torch.addmm(half_norms, chunk, centroids.T, alpha=-1).min(dim=1)
        codes.append(indices)
        halves.append(values)
    distances = torch.cat(halves) * 2 + (squared_lengths(points) if norms is None else norms)
    return torch.cat(codes), distances.clamp_(min=0)


def squared_lengths(points: Tensor) -> Tensor:
    """Squared length of every point, without a copy of them all. Shape: (N, D) -> (N,)."""
    return torch.linalg.vector_norm(points, dim=1).square()


def _seeds(points: Tensor, num_centroids: int, sample_size: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ on a sample; on all points where the sample has too few distinct ones."""
    sample_size = max(sample_size, 8 * num_centroids)
    if sample_size < len(points):
        seeds = _greedy_plus_plus(_sample(points, sample_size, generator), num_centroids, generator)
        if len(seeds) == num_centroids:
            return seeds
    return _greedy_plus_plus(points, num_centroids, generator)


def _greedy_plus_plus(points: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """Seeds far from each other: of T candidates drawn by squared distance, the best one stays.

    Returns:
        Shape: (at most num_centroids, D); fewer where no further distinct point is left.
    """
    with _one_thread(points):
        return _chosen_far_apart(points, num_centroids, generator)


@contextlib.contextmanager
def _one_thread(points: Tensor) -> Iterator[None]:
    """Thousands of products too small to share: two threads took 6 times as long on a busy machine."""
    before = torch.get_num_threads()
    if points.device.type == "cpu" and points.numel() <= _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chosen_far_apart(points: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    num_trials = 2 + int(math.log(num_centroids))
    norms = points.square().sum(dim=1)
    smallest = SAME_POINT * float(norms.mean())
    first = int(torch.randint(len(points), (1,), generator=generator))
    chosen = [first]
    distances = _distances(points, norms, points[first : first + 1], smallest)[0]
    while len(chosen) < num_centroids:
        cumulative = distances.double().cumsum(dim=0)
        total = cumulative[-1]
        if float(total) <= 0:
            break
        draws = torch.rand(num_trials, generator=generator, dtype=torch.float64).to(points.device)
        candidates = torch.searchsorted(cumulative, draws * total, right=True).clamp_(max=len(points) - 1)
        trial = _distances(points, norms, points[candidates], smallest)
        trial = torch.minimum(trial, distances, out=trial)
        best = int(trial.double().sum(dim=1).argmin())
        distances = trial[best]
        chosen.append(int(candidates[best]))
    return points[chosen].clone()


def _distances(points: Tensor, norms: Tensor, candidates: Tensor, smallest: float) -> Tensor:
    """Squared distances of candidates to all points, noise set to 0. Shape: (T, N)."""
    found = torch.addmm(norms, candidates, points.T, alpha=-2)
    found += candidates.square().sum(dim=1, keepdim=True)
    return found.masked_fill_(found <= smallest, 0)


def _means(points: Tensor, codes: Tensor, distances: Tensor, centroids: Tensor) -> Tensor:
    """Mean of every cell; an empty cell is moved to the point worst served so far."""
    counts = torch.bincount(codes, minlength=len(centroids))
    # Summing the rows in cell order is 4 times as fast as index_add_, and its order is fixed.
    start = torch.cat([counts.new_zeros(1), counts.cumsum(dim=0)])
    order = torch.argsort(codes, stable=True)
    means = embedding_bag(order, points, start, mode="mean", include_last_offset=True)
    empty = torch.nonzero(counts == 0).flatten()
    if len(empty):
        farthest = distances.topk(min(len(empty), len(points))).indices
        means[empty] = centroids[empty]
        means[empty[: len(farthest)]] = points[farthest]
    return means
