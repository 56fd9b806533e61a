"""Read ready semantic IDs from a JSON file, and fit codebooks that explain them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from service.semantic_ids.codebooks import Codebooks
from service.semantic_ids.spelling import parse
from training.errors import TrainingError


def read_semantic_ids(path: Path, item_ids: Sequence[str]) -> np.ndarray:
    """Codes of the items, in their order.

    Args:
        path: JSON object: item_id -> list of SID tokens, first level first. Shorter SIDs are filled
            up with code 0 of the missing levels; where a file does so, the codes it gives at such a
            level are shifted by one if it uses 0 there itself.
        item_ids: the catalogue.

    Returns:
        Shape: (N, L), int32.

    Raises:
        TrainingError: the file is missing, an item has no SID, or a SID cannot be read.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"the semantic IDs in {path} cannot be read: {error}") from error
    missing = [item_id for item_id in item_ids if item_id not in table]
    if missing:
        raise TrainingError(f"{path} has no semantic ID for item {missing[0]} ({len(missing)} are missing)")
    try:
        spelled = [parse("".join(table[item_id])) for item_id in item_ids]
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{path}: {error}") from error
    num_levels = max(len(sid) for sid in spelled)
    codes = np.full((len(spelled), num_levels), -1, dtype=np.int32)
    for row, sid in enumerate(spelled):
        codes[row, : len(sid)] = sid
    for level in range(num_levels):
        column = codes[:, level]
        if (column < 0).any() and (column == 0).any():
            column[column >= 0] += 1
    return np.maximum(codes, 0)


def explain(codes: np.ndarray, vectors: np.ndarray) -> Codebooks:
    """Centroids for given codes: per level the mean of what the levels before left unexplained.

    Codes that no item has are marked as unused, so that no new item is given one.

    Args:
        codes: Shape: (N, L).
        vectors: Shape: (N, D).
    """
    residual = np.array(vectors, dtype=np.float32)
    levels, used = [], []
    for level in range(codes.shape[1]):
        column = codes[:, level]
        counts = np.bincount(column)
        sums = np.zeros((len(counts), vectors.shape[1]), dtype=np.float32)
        np.add.at(sums, column, residual)
        book = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        levels.append(book)
        used.append(counts > 0)
        residual = residual - book[column]
    return Codebooks(tuple(levels), tuple(used))
