"""Items like one item: found by the beginning of its semantic ID, ranked by the vectors of the texts.

The semantic ID does what an index of nearest neighbours would: items under the same prefix have near
vectors. Only a few hundred of them are read and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.catalogue.records import ItemRecord
from service.catalogue.sid_chooser import text_of
from service.catalogue.snapshot import Snapshot
from service.semantic_ids.item_text import item_text
from service.semantic_ids.tokenizer import SemanticIdTokenizer

NUM_COMPARED = 200  # texts that are encoded for one answer
NUM_SCANNED = 20_000  # rows whose codes are looked at to choose them


@dataclass(frozen=True)
class Neighbour:
    """A candidate.

    Attributes:
        row: in the snapshot.
        shared_levels: leading codes that both have.
    """

    row: int
    shared_levels: int


def candidates(
    snapshot: Snapshot, codes: Sequence[int], tokenizer: SemanticIdTokenizer | None, num_wanted: int
) -> list[Neighbour]:
    """Rows that may be similar: longest shared prefix first, within it by what the codes say of the vector.

    Args:
        codes: semantic ID of the item. Its own row is among the answer.
        num_wanted: most rows to return.
    """
    found: list[Neighbour] = []
    seen: set[int] = set()
    for shared, rows in _ranges(snapshot, codes, tokenizer):
        rows = rows[~np.isin(rows, snapshot.hidden_rows)]
        rows = rows[[row not in seen for row in rows.tolist()]] if seen else rows
        best = _nearest(snapshot, codes, rows[:NUM_SCANNED], tokenizer)[: num_wanted - len(found)]
        found += [Neighbour(int(row), shared) for row in best]
        seen.update(best.tolist())
        if len(found) >= num_wanted:
            break
    return found


def cosines(tokenizer: SemanticIdTokenizer, record: ItemRecord, others: Sequence[ItemRecord]) -> np.ndarray:
    """Similarity of texts, -1 to 1, 0 where the encoder knows nothing of a text. Shape: (n,), float32."""
    texts = [item_text(*text_of(each), tokenizer.text) for each in (record, *others)]
    vectors = tokenizer.encoder.transform(texts)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.clip(vectors[1:] @ vectors[0], -1.0, 1.0)


def _ranges(
    snapshot: Snapshot, codes: Sequence[int], tokenizer: SemanticIdTokenizer | None
) -> Iterator[tuple[int, np.ndarray]]:
    """(shared levels, rows) with ever shorter prefixes, then other first codes, nearest first."""
    for depth in range(len(codes), 0, -1):
        yield depth, np.arange(*snapshot.rows_under(codes[:depth]))
    if tokenizer is None:
        yield 0, snapshot.popular_rows
        return
    book = tokenizer.codebooks.levels[0]
    for code in np.argsort(np.square(book - book[codes[0]]).sum(1), kind="stable").tolist():
        if code != codes[0]:
            yield 0, np.arange(*snapshot.rows_under((code,)))


def _nearest(
    snapshot: Snapshot, codes: Sequence[int], rows: np.ndarray, tokenizer: SemanticIdTokenizer | None
) -> np.ndarray:
    """Rows by how near their codes say that their vectors are; by popularity where codes say nothing."""
    popular_first = rows[np.argsort(snapshot.popularity_rank[rows], kind="stable")]
    if tokenizer is None or len(rows) < 2:
        return popular_first
    own = tokenizer.codebooks.reconstruct(np.array([codes]))
    theirs = tokenizer.codebooks.reconstruct(snapshot.semantic_ids[popular_first])
    return popular_first[np.argsort(np.square(theirs - own).sum(1), kind="stable")]
