"""Ways to fill the rows of the SID tokens before anything is trained.

Shapes: R rows of SID tokens, D width of the model, V rows of a token matrix, N items, L levels,
K codes of a level, d width of the codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from training.errors import ArmUnavailable
from training.grounding.config import GroundingConfig
from training.grounding.pairs import tokenized_texts
from training.grounding.vocabulary import Vocabulary
from training.learning.batches import derive_seed


@dataclass(frozen=True, eq=False)
class Given:
    """What a row maker may read.

    Attributes:
        vocabulary: which rows are text, which are new.
        items: columns title, description. N rows.
        codes: SIDs of the items. Shape: (N, L).
        codebooks: vectors of the codes, None for a level without any. Shape of each: (K, d).
        tokenizer: of the base model.
        config: the recipe's section.
        seed: the run's seed.
    """

    vocabulary: Vocabulary
    items: pl.DataFrame
    codes: np.ndarray
    codebooks: Sequence[np.ndarray | None]
    tokenizer: Any
    config: GroundingConfig
    seed: int

    def levels(self) -> Iterator[tuple[int, slice, np.ndarray]]:
        """Per level: its number, where its rows stand among the new ones, and which codes an item carries."""
        start = 0
        for number, level in enumerate(self.vocabulary.levels):
            counts = np.bincount(self.codes[:, number], minlength=level.codebook_size)
            yield number, slice(start, start + level.codebook_size), counts > 0
            start += level.codebook_size


RowMaker = Callable[[torch.Tensor, Given], torch.Tensor]


@torch.no_grad()
def mean_rows(matrix: torch.Tensor, given: Given) -> torch.Tensor:
    """Every new row is the exact mean of the real text rows.

    Padding rows are left out, and the sum is taken in float64. (transformers' own resize draws from
    a normal distribution around a mean that includes padding.)

    Args:
        matrix: Shape: (V, D).
        given: its vocabulary says which rows are text.

    Returns:
        Shape: (R, D), float32.
    """
    mean = text_rows(matrix, given.vocabulary).double().mean(0)
    return mean.float().expand(given.vocabulary.num_new, -1).clone()


@torch.no_grad()
def gaussian_rows(matrix: torch.Tensor, given: Given) -> torch.Tensor:
    """Every new row is drawn from the normal distribution with the text rows' mean and covariance."""
    text = text_rows(matrix, given.vocabulary).cpu().double()
    mean = text.mean(0)
    # A square root of the covariance without forming it: rows of S V^T / sqrt(V - 1).
    _, values, axes = torch.linalg.svd(text - mean, full_matrices=False)
    generator = torch.Generator().manual_seed(derive_seed(given.seed, "grounding", "gaussian"))
    drawn = torch.randn(given.vocabulary.num_new, len(values), generator=generator, dtype=torch.float64)
    spread = drawn @ (values[:, None] * axes) / max(1, len(text) - 1) ** 0.5
    return (mean + given.config.gaussian_scale * spread).float().to(matrix.device)


@torch.no_grad()
def description_rows(matrix: torch.Tensor, given: Given) -> torch.Tensor:
    """A code's row is the mean over all text tokens of the items that carry it.

    Codes that no item carries, or only items without text, get the mean of the text rows.

    Raises:
        ArmUnavailable: no item has the text that the recipe names.
    """
    sums, counts = text_sums(matrix, given)
    if not counts.any():
        raise ArmUnavailable(
            f"grounding.init = 'description' needs item texts, and no item has any "
            f"(grounding.description_text = '{given.config.description_text}')"
        )
    rows = mean_rows(matrix, given).cpu().double().numpy()
    for number, place, _ in given.levels():
        size = place.stop - place.start
        tokens = np.bincount(given.codes[:, number], weights=counts, minlength=size)
        total = np.zeros((size, matrix.shape[1]))
        np.add.at(total, given.codes[:, number], sums)
        has_text = tokens > 0
        rows[place][has_text] = total[has_text] / tokens[has_text, None]
    return torch.from_numpy(rows).float().to(matrix.device)


@torch.no_grad()
def centroid_rows(matrix: torch.Tensor, given: Given) -> torch.Tensor:
    """A code's row is its centroid mapped into the model's embedding space, norm and mean matched.

    Each level's centroids are centred, mapped by one linear map, scaled until their mean length
    equals that of the centred text rows (times `centroid_scale`), and moved to the text rows' mean.

    Source: the idea of arXiv:2608.07816; the two maps are our own reading of it.

    Raises:
        ArmUnavailable: there are no codebooks.
    """
    books = [book for book in given.codebooks if book is not None]
    if not books:
        raise ArmUnavailable(
            "grounding.init = 'centroid' and 'centroid-a' need codebooks, and these semantic IDs have none; "
            "use semantic_ids.kind = 'residual_kmeans', or another init"
        )
    text = text_rows(matrix, given.vocabulary).cpu().double().numpy()
    length = np.linalg.norm(text - text.mean(0), axis=1).mean() * given.config.centroid_scale
    mapping = _MAPS[given.config.centroid_map](matrix, given, books[0].shape[1])
    rows = mean_rows(matrix, given).cpu().double().numpy()
    for number, place, is_used in given.levels():
        book = given.codebooks[number]
        if book is None or is_used.sum() < 2:
            continue  # a level that only numbers collisions has no centroids; it starts at the mean
        used = book[is_used].astype(np.float64)
        mapped = (used - used.mean(0)) @ mapping
        scale = np.linalg.norm(mapped, axis=1).mean()
        rows[place][is_used] += mapped * (length / scale if scale > 0 else 0.0)
    return torch.from_numpy(rows).float().to(matrix.device)


def _projection(matrix: torch.Tensor, given: Given, width: int) -> np.ndarray:
    """A map that keeps the centroids' angles: principal axes, then a random rotation. Shape: (d, D)."""
    used = [
        book[is_used] - book[is_used].mean(0)
        for (_, _, is_used), book in zip(given.levels(), given.codebooks, strict=True)
        if book is not None
    ]
    _, _, axes = np.linalg.svd(np.concatenate(used).astype(np.float64), full_matrices=False)
    kept = axes[: matrix.shape[1]]
    generator = np.random.default_rng(derive_seed(given.seed, "grounding", "centroid"))
    rotation, _ = np.linalg.qr(generator.normal(size=(matrix.shape[1], matrix.shape[1])))
    return kept.T @ rotation[: len(kept)]


def _regression(matrix: torch.Tensor, given: Given, width: int) -> np.ndarray:
    """The ridge map from items' quantized vectors to the mean row of their text's tokens. Shape: (d, D)."""
    sums, counts = text_sums(matrix, given)
    has_text = counts > 0
    if not has_text.any():
        raise ArmUnavailable(
            "grounding.centroid_map = 'regression' learns from item texts, and no item has any; "
            "use 'projection'"
        )
    vectors = np.zeros((len(given.codes), width))
    for number, book in enumerate(given.codebooks):
        if book is not None:
            vectors += book[given.codes[:, number]]
    wanted = sums[has_text] / counts[has_text, None]
    vectors = vectors[has_text] - vectors[has_text].mean(0)
    wanted = wanted - wanted.mean(0)
    gram = vectors.T @ vectors
    ridge = given.config.centroid_ridge * np.trace(gram) / width
    return np.linalg.solve(gram + ridge * np.eye(width), vectors.T @ wanted)


_MAPS: dict[str, Callable[[torch.Tensor, Given, int], np.ndarray]] = {
    "projection": _projection,
    "regression": _regression,
}

ROW_MAKERS: dict[str, RowMaker] = {
    "mean": mean_rows,
    "gaussian": gaussian_rows,
    "description": description_rows,
    "centroid": centroid_rows,
}


def text_rows(matrix: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """The rows of real text tokens. Shape: (V, D) -> (V_text, D)."""
    return matrix[torch.from_numpy(vocabulary.text_token_ids).to(matrix.device)]


def text_sums(matrix: torch.Tensor, given: Given) -> tuple[np.ndarray, np.ndarray]:
    """Per item the sum of its text tokens' rows, and how many there are. Shapes: (N, D), (N,)."""
    table = matrix.detach().cpu().double().numpy()
    sums, counts = np.zeros((given.items.height, table.shape[1])), np.zeros(given.items.height)
    shown = given.config.description_text
    for item, (title, description) in enumerate(tokenized_texts(given.items, given.tokenizer, given.config)):
        tokens = {"title": title, "description": description, "both": [*title, *description]}[shown]
        sums[item], counts[item] = table[tokens].sum(0), len(tokens)
    return sums, counts


def shuffle_rows(rows: torch.Tensor, given: Given) -> torch.Tensor:
    """Rows permuted within each level, among the codes that items carry. Shape: (R, D) -> (R, D).

    The norms, the spectrum and everything trained stay; only which code a row belongs to is lost.
    """
    shuffled = rows.clone()
    generator = np.random.default_rng(derive_seed(given.seed, "grounding", "shuffled"))
    for _, place, is_used in given.levels():
        # One cycle through all of them: no code keeps its own row where there are two or more.
        order = generator.permutation(place.start + np.flatnonzero(is_used))
        shuffled[torch.from_numpy(order)] = rows[torch.from_numpy(np.roll(order, 1))]
    return shuffled
