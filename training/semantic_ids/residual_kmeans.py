"""Residual k-means: cluster the vectors, subtract the centroids, cluster what is left."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from service.semantic_ids.codebooks import Codebooks
from training.semantic_ids.kmeans import kmeans


def fit_residual_kmeans(
    vectors: np.ndarray, num_levels: int, codebook_size: int, *, seed: int, num_iterations: int = 25
) -> Codebooks:
    """Fit one codebook per level.

    Args:
        vectors: Shape: (N, D), float32.
        num_levels: L.
        codebook_size: K wanted; a level with fewer distinct residuals gets as many as there are.
        seed: of the k-means seeding.
        num_iterations: Lloyd iterations, at most.
    """
    residual = torch.from_numpy(np.array(vectors, dtype=np.float32))
    levels = []
    for level in tqdm(range(num_levels), desc="residual k-means", unit="level"):
        found = kmeans(residual, codebook_size, seed=seed + level, num_iterations=num_iterations)
        levels.append(found.centroids.numpy())
        residual = residual - found.centroids[found.codes]
    return Codebooks(tuple(levels))
