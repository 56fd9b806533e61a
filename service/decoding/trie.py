"""The trie: which code may follow which prefix, and which item rows lie under every prefix.

SIDs are sorted lexicographically, so the trie is compressed sparse rows, level by level, and every
node covers one contiguous range of item rows. Nodes at depth d are numbered in sorted order; the
root is node 0 at depth 0. For level l (0-based), with M_d nodes at depth d:

    child_start[l]  (M_l + 1,)      children of node n at depth l are nodes
                                    [child_start[l][n], child_start[l][n + 1]) at depth l + 1
    child_code[l]   (M_{l+1},)      the code that leads to each of them, ascending within a parent
    row_start[l]    (M_{l+1} + 1,)  item rows under node n at depth l + 1 are
                                    [row_start[l][n], row_start[l][n + 1])

Nothing is dense in the vocabulary. The layout follows the offline half of STATIC
(arXiv:2602.22647) without its dense first levels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from service.bundle import Bundle
from service.errors import BundleError, CatalogueError


@dataclass(frozen=True, eq=False)
class Trie:
    """An immutable trie over sorted semantic IDs. See the module docstring for the arrays.

    Attributes:
        num_items: N, item rows covered; items that share a SID are counted each.
        codebook_sizes: K of every level.
        version: hash of the SIDs, equal for equal catalogues on every replica.
        child_start, child_code, row_start: one array per level.
            Dtypes: int32, the smallest of uint8/int16/int32, int32.
        max_children: widest fan-out of every level.
    """

    num_items: int
    codebook_sizes: tuple[int, ...]
    version: str
    child_start: tuple[torch.Tensor, ...] = field(repr=False)
    child_code: tuple[torch.Tensor, ...] = field(repr=False)
    row_start: tuple[torch.Tensor, ...] = field(repr=False)
    max_children: tuple[int, ...]

    @property
    def num_levels(self) -> int:
        """L, the length of every SID."""
        return len(self.codebook_sizes)

    @property
    def num_leaves(self) -> int:
        """Number of distinct SIDs."""
        return int(self.child_code[-1].numel())

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(t.numel() * t.element_size() for group in self._arrays().values() for t in group)

    @classmethod
    def build(cls, codes: np.ndarray, codebook_sizes: tuple[int, ...]) -> Trie:
        """Build from SIDs in row order.

        Args:
            codes: SIDs of all item rows, sorted lexicographically; equal rows are items that share
                a SID. Shape: (N, L), integers with 0 <= code < codebook_sizes[level].
            codebook_sizes: K of every level, length L.

        Raises:
            ValueError: if the shape, the order or a code is wrong; the message names the row.
        """
        codes = _check_codes(codes, codebook_sizes)
        num_items, num_levels = codes.shape
        starts_node = np.zeros(num_items, dtype=bool)
        starts_node[0] = True
        child_start, child_code, row_start, max_children = [], [], [], []
        parent_rows = np.zeros(1, dtype=np.int64)  # first row of every node one level up
        for level in range(num_levels):
            column = codes[:, level]
            starts_node[1:] |= column[1:] != column[:-1]
            first_rows = np.flatnonzero(starts_node)
            starts = np.searchsorted(first_rows, np.append(parent_rows, num_items)).astype(np.int32)
            child_start.append(starts)
            child_code.append(column[first_rows].astype(_code_dtype(codebook_sizes[level])))
            row_start.append(np.append(first_rows, num_items).astype(np.int32))
            max_children.append(int(np.diff(starts).max()))
            parent_rows = first_rows
        return cls(
            num_items=num_items,
            codebook_sizes=tuple(codebook_sizes),
            version=_version(codes.T, codebook_sizes),
            child_start=tuple(torch.from_numpy(a) for a in child_start),
            child_code=tuple(torch.from_numpy(a) for a in child_code),
            row_start=tuple(torch.from_numpy(a) for a in row_start),
            max_children=tuple(max_children),
        )

    def save(self, directory: Path) -> None:
        """Write one `.npy` file per array, plus `sizes.npy`; `load` maps them without copying."""
        directory.mkdir(parents=True, exist_ok=True)
        sizes = np.asarray([self.num_items, *self.codebook_sizes], dtype=np.int64)
        np.save(directory / "sizes.npy", sizes)
        for name, arrays in self._arrays().items():
            for level, array in enumerate(arrays):
                np.save(directory / f"{name}_{level}.npy", array.numpy())

    @classmethod
    def load(cls, directory: Path, version: str) -> Trie:
        """Memory-map a saved trie.

        Args:
            directory: where `save` wrote.
            version: the version recorded beside it; stored in the bundle, because hashing millions
                of SIDs at every start would cost more than mapping them.

        Raises:
            BundleError: a file is missing, unreadable or of the wrong shape.
        """
        try:
            sizes = np.load(directory / "sizes.npy", allow_pickle=False)
            num_items, codebook_sizes = int(sizes[0]), tuple(int(k) for k in sizes[1:])
            groups = {
                name: tuple(_map(directory / f"{name}_{level}.npy") for level in range(len(codebook_sizes)))
                for name in ("child_start", "child_code", "row_start")
            }
        except (OSError, ValueError, IndexError) as error:
            raise BundleError(
                f"the trie in {directory} cannot be read ({error}); export the bundle again"
            ) from error
        trie = cls(
            num_items=num_items,
            codebook_sizes=codebook_sizes,
            version=version,
            max_children=tuple(int(s.diff().max()) for s in groups["child_start"]),
            **groups,
        )
        trie._check_shapes(directory)
        return trie

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Trie:
        """The bundle's trie, checked against its manifest.

        Raises:
            BundleError: the trie on disk is not the one the manifest describes.
        """
        trie = cls.load(bundle.trie_dir, bundle.manifest.trie_version)
        described = (bundle.manifest.num_items, bundle.manifest.codebook_sizes)
        if (trie.num_items, trie.codebook_sizes) != described:
            raise BundleError(
                f"the trie in {bundle.trie_dir} has {trie.num_items} items and codebooks "
                f"{trie.codebook_sizes}, the manifest says {described}; export the bundle again"
            )
        return trie

    def check(self) -> None:
        """Read every array and compare it with the version, which is a hash of the SIDs.

        Raises:
            CatalogueError: an array was damaged, or belongs to another trie.
        """
        for level in range(self.num_levels):
            rows, starts = self.row_start[level].cpu().numpy(), self.child_start[level].cpu().numpy()
            rows_above = (
                np.asarray([0, self.num_items]) if not level else self.row_start[level - 1].cpu().numpy()
            )
            is_ordered = rows[0] == 0 and (rows[1:] > rows[:-1]).all()
            inside = starts.min() >= 0 and starts.max() < len(rows)
            if not (is_ordered and inside and np.array_equal(rows[starts], rows_above)):
                raise CatalogueError(f"the trie {self.version} is damaged at level {level}; build it again")
        columns = (
            np.repeat(codes.cpu().numpy(), np.diff(rows.cpu().numpy()))
            for codes, rows in zip(self.child_code, self.row_start, strict=True)
        )
        if (found := _version(columns, self.codebook_sizes)) != self.version:
            raise CatalogueError(f"the trie says it is {self.version} but holds {found}; build it again")

    def sids_of(self, leaves: torch.Tensor) -> torch.Tensor:
        """Spell leaves back into SIDs by walking up with binary search.

        Args:
            leaves: node numbers at depth L. Shape: (...,), int64.

        Returns:
            Codes. Shape: (..., L), int64.
        """
        codes, nodes = [], leaves
        for level in reversed(range(self.num_levels)):
            codes.append(self.child_code[level][nodes].long())
            starts = self.child_start[level]
            nodes = torch.searchsorted(starts, nodes.to(starts.dtype).contiguous(), right=True) - 1
        return torch.stack(codes[::-1], dim=-1)

    def to(self, device: torch.device | str) -> Trie:
        """The same trie on another device."""
        moved = {name: tuple(t.to(device) for t in group) for name, group in self._arrays().items()}
        return replace(self, **moved)

    def _arrays(self) -> dict[str, tuple[torch.Tensor, ...]]:
        return {
            "child_start": self.child_start,
            "child_code": self.child_code,
            "row_start": self.row_start,
        }

    def _check_shapes(self, directory: Path) -> None:
        nodes_above = 1
        for level in range(self.num_levels):
            starts, codes, rows = self.child_start[level], self.child_code[level], self.row_start[level]
            fits = starts.numel() == nodes_above + 1 and rows.numel() == codes.numel() + 1
            if not fits or int(starts[-1]) != codes.numel() or int(rows[-1]) != self.num_items:
                raise BundleError(
                    f"the trie in {directory} is inconsistent at level {level}; export the bundle again"
                )
            nodes_above = codes.numel()


def _check_codes(codes: np.ndarray, codebook_sizes: tuple[int, ...]) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[0] < 1 or codes.shape[1] != len(codebook_sizes):
        raise ValueError(f"SIDs must have shape (N >= 1, {len(codebook_sizes)}), got {codes.shape}")
    if codes.shape[0] > np.iinfo(np.int32).max:
        raise ValueError(f"at most 2^31 - 1 items fit the trie, got {codes.shape[0]}")
    for level, size in enumerate(codebook_sizes):
        column = codes[:, level]
        low, high = int(column.min()), int(column.max())
        if low < 0 or high >= size:
            raise ValueError(f"level {level} has codes {low}..{high}, allowed are 0..{size - 1}")
    undecided = np.ones(len(codes) - 1, dtype=bool)  # equal to the row before, so far
    for level in range(codes.shape[1]):
        column = codes[:, level]
        falls = undecided & (column[1:] < column[:-1])
        if falls.any():
            raise ValueError(f"SIDs must be sorted; row {int(np.flatnonzero(falls)[0]) + 1} is out of order")
        undecided &= column[1:] == column[:-1]
    return codes


def _code_dtype(codebook_size: int) -> np.dtype:
    if codebook_size <= 2**8:
        return np.dtype(np.uint8)
    # torch indexes and gathers uint16 only partly (2.13), so larger codes take int32.
    return np.dtype(np.int16) if codebook_size <= 2**15 else np.dtype(np.int32)


def _version(columns: Iterable[np.ndarray], codebook_sizes: tuple[int, ...]) -> str:
    digest = hashlib.sha256(repr(tuple(codebook_sizes)).encode())
    for column, size in zip(columns, codebook_sizes, strict=True):
        digest.update(np.ascontiguousarray(column, dtype=_code_dtype(size)).data)
    return digest.hexdigest()[:16]


def _map(path: Path) -> torch.Tensor:
    # Copy-on-write mapping: torch wants a writable array, and nothing here ever writes.
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
