"""Sparse matrices as compressed rows, multiplied through torch's `embedding_bag`.

A row of a sparse product is the weighted sum of the dense rows it names, which is what
`embedding_bag` computes, in parallel and in a fixed order; torch's own CSR tensors still warn of
being beta. Shapes: N rows, M columns, S columns of the dense factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class SparseMatrix:
    """Compressed sparse rows.

    Attributes:
        row_start: first entry of every row, and the end. Shape: (N + 1,), int64.
        columns: column of every entry. Shape: (num_entries,), int64.
        values: Shape: (num_entries,), float32.
        num_columns: M.
    """

    row_start: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    num_columns: int

    @classmethod
    def from_rows(cls, rows: list[dict[int, float]], num_columns: int) -> SparseMatrix:
        """Build from one {column: value} per row."""
        row_start = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=row_start[1:])
        columns = np.fromiter((c for row in rows for c in row), dtype=np.int64, count=int(row_start[-1]))
        values = np.fromiter(
            (v for row in rows for v in row.values()), dtype=np.float32, count=int(row_start[-1])
        )
        return cls(row_start, columns, values, num_columns)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.row_start) - 1

    def transposed(self) -> SparseMatrix:
        """The same matrix, by columns."""
        order = np.argsort(self.columns, kind="stable")
        rows = np.repeat(np.arange(self.num_rows), np.diff(self.row_start))
        row_start = np.zeros(self.num_columns + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.columns, minlength=self.num_columns), out=row_start[1:])
        return SparseMatrix(row_start, rows[order], self.values[order], self.num_rows)

    def times(self, dense: Tensor) -> Tensor:
        """Product with a dense matrix. Shape: (M, S) -> (N, S), float32."""
        return embedding_bag(
            torch.from_numpy(self.columns),
            dense.contiguous(),
            torch.from_numpy(self.row_start),
            mode="sum",
            per_sample_weights=torch.from_numpy(self.values),
            include_last_offset=True,
        )
