"""Fit the TF-IDF encoder, and the collaborative part of its vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from tqdm import tqdm

from service.semantic_ids.sparse import SparseMatrix
from service.semantic_ids.terms import terms
from service.semantic_ids.tfidf_encoder import TfidfEncoder, unit_rows
from training.errors import TrainingError
from training.semantic_ids.config import EncoderConfig
from training.semantic_ids.truncated_svd import truncated_svd

_RIDGE = 1e-2  # of the mean eigenvalue: text directions without evidence predict nothing


def fit_tfidf(
    texts: Sequence[str], sequences: pl.Series, config: EncoderConfig, *, seed: int
) -> tuple[TfidfEncoder, np.ndarray]:
    """Fit on the catalogue.

    Args:
        texts: one per item.
        sequences: training sequences, lists of item indices; read only with a collaborative weight.
        config: see there.
        seed: of the SVD.

    Returns:
        The encoder, and the items' vectors, shape (N, D + C), float32. They differ from
        `encoder.transform(texts)` in the collaborative part, where an item's own history counts.
    """
    vocabulary, document_counts = _vocabulary(texts, config)
    idf = (np.log((1 + len(texts)) / (1 + document_counts)) + 1).astype(np.float32)
    nothing = np.zeros((0, 0), dtype=np.float32)
    plain = TfidfEncoder(vocabulary, config.max_words, idf, nothing, nothing, max_chars=config.max_chars)
    matrix = plain.term_matrix(tqdm(texts, desc="weigh terms", unit="text"))
    dim = min(config.dim, matrix.num_rows, matrix.num_columns)
    components = truncated_svd(matrix, dim, seed=seed).right.numpy()
    text_only = replace(plain, components=components, taste_map=np.zeros((dim, 0), dtype=np.float32))
    text_part = text_only.project(matrix)
    if not config.collaborative_weight:
        return text_only, text_part
    taste, evidence = taste_vectors(sequences, len(texts), config, seed=seed)
    taste_map = _fit_map(text_part, taste, evidence)
    encoder = replace(text_only, taste_map=taste_map, taste_weight=config.collaborative_weight)
    trust = (evidence / (evidence + config.collaborative_trust))[:, None]
    blended = trust * taste + (1 - trust) * unit_rows(text_part @ taste_map)
    return encoder, encoder.join(text_part, blended)


def _vocabulary(texts: Sequence[str], config: EncoderConfig) -> tuple[dict[str, int], np.ndarray]:
    """Terms neither too rare nor too common, and in how many texts each occurs. Shape: (M,), float64."""
    counts: Counter[str] = Counter()
    for text in tqdm(texts, desc="count terms", unit="text"):
        counts.update(set(terms(text, config.max_words, config.max_chars)))
    most = max(config.min_items, config.max_share * len(texts))
    kept = sorted(term for term, n in counts.items() if config.min_items <= n <= most)
    if len(kept) > config.max_terms:
        commonest = sorted(kept, key=lambda term: (-counts[term], term))
        kept = sorted(commonest[: config.max_terms])
    if len(kept) < 2:
        raise TrainingError(
            "the items' texts have too few words in common to embed them by TF-IDF; lower "
            "encoder.min_items, raise encoder.max_share, or use another encoder.kind"
        )
    vocabulary = {term: column for column, term in enumerate(kept)}
    return vocabulary, np.array([counts[term] for term in kept], dtype=np.float64)


def taste_vectors(
    sequences: pl.Series, num_items: int, config: EncoderConfig, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Items by the company they keep: SVD of positive pointwise mutual information.

    Pairs within the window count 1 / distance; the context distribution is flattened by the power
    3/4 (Levy, Goldberg and Dagan, 2015).

    Returns:
        Unit vectors (zero for items without company), shape (N, C), float32, and the weight of every
        item's company, shape (N,).
    """
    pairs = _pairs(sequences, num_items, config.collaborative_window)
    if not len(pairs):
        raise TrainingError("no two different items follow each other; set encoder.collaborative_weight = 0")
    keys, weights = pairs[:, 0].astype(np.int64), pairs[:, 1]
    rows, columns = keys // num_items, keys % num_items
    evidence = np.bincount(rows, weights, minlength=num_items)
    context = evidence**0.75
    context /= context.sum()
    information = np.log(weights / (evidence[rows] * context[columns]))
    kept = information > 0
    row_start = np.zeros(num_items + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows[kept], minlength=num_items), out=row_start[1:])
    matrix = SparseMatrix(row_start, columns[kept], information[kept].astype(np.float32), num_items)
    svd = truncated_svd(matrix, min(config.collaborative_dim, num_items), seed=seed)
    return unit_rows((svd.left * svd.singular_values.sqrt()).numpy()), evidence


def _pairs(sequences: pl.Series, num_items: int, window: int) -> np.ndarray:
    """Distinct ordered pairs of items and their weights. Shape: (P, 2): key = i * N + j, weight."""
    lengths = sequences.list.len().to_numpy()
    items = sequences.explode().to_numpy().astype(np.int64)
    user = np.repeat(np.arange(len(lengths)), lengths)
    keys, weights = [], []
    for distance in range(1, window + 1):
        a, b = items[:-distance], items[distance:]
        together = (user[:-distance] == user[distance:]) & (a != b)
        for first, second in ((a, b), (b, a)):
            keys.append(first[together] * num_items + second[together])
            weights.append(np.full(int(together.sum()), 1 / distance))
    distinct, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    return np.stack([distinct.astype(np.float64), np.bincount(inverse, np.concatenate(weights))], axis=1)


def _fit_map(text_part: np.ndarray, taste: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Ridge regression of taste on text, weighted by evidence. Shape: (D, C), float32."""
    weights = (evidence / (1 + evidence))[:, None]
    gram = text_part.T @ (weights * text_part)
    ridge = _RIDGE * np.trace(gram) / len(gram)
    solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), text_part.T @ (weights * taste))
    return solved.astype(np.float32)
