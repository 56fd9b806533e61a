"""Sinkhorn-Knopp: spread points evenly over codes, as near to their nearest ones as that allows.

Source: Cuturi (2013), "Sinkhorn distances"; its use on the last level of a semantic ID: LC-Rec
(arXiv:2311.09049), section 3.2.

Shapes: N points, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_plan(distances: Tensor, *, epsilon: float, num_iterations: int) -> Tensor:
    """Transport plan between points and codes: every point weighs 1, every code gets N / K.

    Distances are scaled by the spread of the matrix, so that one epsilon suits every level.

    Args:
        distances: Shape: (N, K), finite, >= 0.
        epsilon: entropy against distance; the smaller, the nearer to hard assignments.
        num_iterations: rounds of row and column scaling.

    Returns:
        Shape: (N, K), float32; rows sum to about 1.
    """
    num_points, num_codes = distances.shape
    above_nearest = distances.float() - distances.amin(dim=1, keepdim=True).float()
    spread = above_nearest.amax().clamp(min=1e-12)
    # Not below e^-40: products of smaller numbers are denormal, and those are a hundred times slower.
    kernel = torch.exp((-above_nearest / (spread * epsilon)).clamp(min=-40))
    for_codes = kernel.new_full((num_codes,), 1 / num_codes)
    for_points = kernel.new_ones(num_points)
    for _ in range(num_iterations):
        for_points = 1 / (kernel @ for_codes)
        for_codes = (num_points / num_codes) / (kernel.T @ for_points)
    return for_points[:, None] * kernel * for_codes


def balanced_codes(distances: Tensor, *, epsilon: float, num_iterations: int) -> Tensor:
    """The heaviest code of every point under `balanced_plan`. Shape: (N, K) -> (N,), int64."""
    return balanced_plan(distances, epsilon=epsilon, num_iterations=num_iterations).argmax(dim=1)
