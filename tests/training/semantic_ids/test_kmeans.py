"""K-means against scikit-learn, and the residual levels."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from training.semantic_ids.kmeans import kmeans
from training.semantic_ids.residual_kmeans import fit_residual_kmeans


def blobs(num_blobs: int, per_blob: int, dim: int = 8) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_blobs, dim)) * 5
    points = centres[:, None] + rng.normal(size=(num_blobs, per_blob, dim)) * 0.3
    return points.reshape(-1, dim).astype(np.float32)


@pytest.mark.parametrize(
    "points", [blobs(30, 40), np.random.default_rng(1).normal(size=(2000, 8)).astype(np.float32)]
)
def test_inertia_is_within_five_percent_of_scikit_learn(points: np.ndarray) -> None:
    ours = kmeans(torch.from_numpy(points), 30, seed=0, num_iterations=50)
    theirs = KMeans(30, n_init=1, random_state=0, max_iter=50).fit(points)
    assert ours.inertia <= 1.05 * theirs.inertia_
    nearest = torch.cdist(torch.from_numpy(points), ours.centroids).argmin(1)
    assert (nearest == ours.codes).float().mean() > 0.999


def test_the_same_seed_gives_the_same_centroids() -> None:
    points = torch.from_numpy(blobs(10, 20))
    assert torch.equal(kmeans(points, 7, seed=3).centroids, kmeans(points, 7, seed=3).centroids)


def test_fewer_distinct_points_than_centroids() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(10, 1)
    found = kmeans(points, 5)
    assert len(found.centroids) == 2
    assert found.inertia == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("points", "count", "message"),
    [
        (torch.zeros(0, 3), 2, "N >= 1"),
        (torch.zeros(3, 3), 0, "at least 1 centroid"),
        (torch.full((3, 3), float("nan")), 2, "not finite"),
    ],
)
def test_bad_input_is_explained(points: torch.Tensor, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kmeans(points, count)


def test_every_level_explains_more() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    errors = []
    for num_levels in (1, 2, 3):
        books = fit_residual_kmeans(vectors, num_levels, 16, seed=0)
        codes, _ = books.encode(vectors)
        errors.append(float(np.square(vectors - books.reconstruct(codes)).sum()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
