"""Truncated SVD of a sparse matrix by a randomized range finder.

Source: Halko, Martinsson, Tropp (2011), "Finding structure with randomness", algorithms 4.4 and 5.1.
Shapes: N rows, M columns, D wanted singular values, S = D + oversampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from service.semantic_ids.sparse import SparseMatrix


@dataclass(frozen=True)
class TruncatedSvd:
    """The largest singular triplets, largest first.

    Attributes:
        left: Shape: (N, D), float32, orthonormal columns.
        singular_values: Shape: (D,), float32.
        right: Shape: (M, D), float32, orthonormal columns; the largest entry of each is positive.
    """

    left: Tensor
    singular_values: Tensor
    right: Tensor


def truncated_svd(
    matrix: SparseMatrix, dim: int, *, seed: int = 0, oversampling: int = 16, num_power_iterations: int = 5
) -> TruncatedSvd:
    """Find the `dim` largest singular values and vectors of a sparse matrix.

    Args:
        matrix: Shape: (N, M).
        dim: D, at most min(N, M).
        seed: seeds the random start; same seed, same result.
        oversampling: extra directions that are followed and dropped at the end.
        num_power_iterations: passes over the matrix and its transpose; more sharpens the last values.

    Raises:
        ValueError: dim is outside [1, min(N, M)].
    """
    limit = min(matrix.num_rows, matrix.num_columns)
    if not 1 <= dim <= limit:
        raise ValueError(f"dim must be in [1, {limit}] for a {matrix.num_rows} x {matrix.num_columns} matrix")
    transposed = matrix.transposed()
    generator = torch.Generator().manual_seed(seed)
    width = min(dim + oversampling, limit)
    start = torch.randn(matrix.num_columns, width, generator=generator)
    basis = _orthonormal(matrix.times(start))
    for _ in range(num_power_iterations):
        basis = _orthonormal(matrix.times(_orthonormal(transposed.times(basis))))
    # The small problem: B = Q^T A, shape (S, M), held as its transpose.
    right, values, small_left = torch.linalg.svd(transposed.times(basis), full_matrices=False)
    left, right, values = (basis @ small_left.T)[:, :dim], right[:, :dim], values[:dim]
    signs = torch.sign(right.gather(0, right.abs().argmax(dim=0, keepdim=True)))
    signs[signs == 0] = 1
    return TruncatedSvd((left * signs).contiguous(), values.contiguous(), (right * signs).contiguous())


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns).Q
