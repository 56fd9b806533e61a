"""Numbers about the rows of the SID tokens: are they spread out, and do they mirror the codebooks?

Rank measures: Roy & Vetterli 2007 (effective rank) and the participation ratio of the spectrum.
RSA compares the cosines among the rows of a level with the cosines among its codebook's vectors.
Rows of codes that no item carries learn nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.grounding.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class CodeUse:
    """What the items say about the codes of one level.

    Attributes:
        is_used: whether an item carries the code. Shape: (K,), bool.
        codebook: vectors of the codes, or None for a level without any (a collision level).
            Shape: (K, d), float32.
    """

    is_used: np.ndarray
    codebook: np.ndarray | None


def code_uses(
    codes: np.ndarray, sizes: Sequence[int], codebooks: Sequence[np.ndarray | None]
) -> list[CodeUse]:
    """One entry per level. Shape of codes: (N, L)."""
    uses = []
    for level, (size, codebook) in enumerate(zip(sizes, codebooks, strict=True)):
        is_used = np.bincount(codes[:, level], minlength=size)[:size] > 0
        uses.append(CodeUse(is_used, codebook))
    return uses


def describe_rows(
    rows: torch.Tensor, matrix: torch.Tensor, vocabulary: Vocabulary, uses: Sequence[CodeUse]
) -> dict[str, Any]:
    """Numbers per level and pooled, beside the norms of the text rows.

    Args:
        rows: rows of the SID tokens. Shape: (R, D).
        matrix: the matrix they belong to, for its text rows. Shape: (V, D).
        vocabulary: where everything stands.
        uses: one per level.

    Returns:
        JSON-able; numbers that are not defined (RSA of equal rows) are None.
    """
    values = rows.detach().cpu().float().numpy()
    text = matrix.detach().cpu().float().numpy()[vocabulary.text_token_ids]
    text_norms = np.linalg.norm(text, axis=1)
    described: dict[str, Any] = {
        "text_norm_mean": float(text_norms.mean()),
        "text_norm_std": float(text_norms.std()),
        "text_effective_rank": spectrum_numbers(text)["effective_rank"],
        "levels": {},
    }
    start, used_rows = 0, []
    for level, use in zip(vocabulary.levels, uses, strict=True):
        here = values[start : start + level.codebook_size][use.is_used]
        start += level.codebook_size
        used_rows.append(here)
        numbers = _numbers(here)
        numbers |= {"codes": level.codebook_size, "codes_used": int(use.is_used.sum())}
        if use.codebook is not None:
            numbers |= rsa(use.codebook[use.is_used], here)
        described["levels"][level.letter] = numbers
    described["all"] = _numbers(np.concatenate(used_rows))
    described["all"] |= _mean_rsa(described["levels"].values())
    return described


def _numbers(rows: np.ndarray) -> dict[str, Any]:
    centred = spectrum_numbers(without_mean(rows))
    norms = np.linalg.norm(rows, axis=1)
    return {
        **spectrum_numbers(rows),
        **{f"centred_{name}": value for name, value in centred.items()},
        "norm_mean": float(norms.mean()),
        "norm_std": float(norms.std()),
        "mean_cosine": mean_cosine(rows),
        "singular_values": _rounded(spectrum(rows)),
        "centred_singular_values": _rounded(spectrum(without_mean(rows))),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def without_mean(rows: np.ndarray) -> np.ndarray:
    """Rows minus their mean; exactly zero where the difference is rounding. Shape kept, float64."""
    wide = rows.astype(np.float64)
    centred = wide - wide.mean(0)
    rounding = 1e-7 * np.abs(wide).max(initial=0.0)
    return centred if np.abs(centred).max(initial=0.0) > rounding else np.zeros_like(wide)


def spectrum(rows: np.ndarray) -> np.ndarray:
    """Singular values, largest first. Shape: (n, D) -> (min(n, D),)."""
    return np.linalg.svd(rows.astype(np.float64), compute_uv=False)


def spectrum_numbers(rows: np.ndarray) -> dict[str, float]:
    """Effective rank exp(entropy(s / sum s)) and participation ratio (sum s^2)^2 / sum s^4.

    Both are 0 for rows that are all zero.
    """
    values = spectrum(rows)
    values = values[values > 0]
    if not len(values):
        return {"effective_rank": 0.0, "participation_ratio": 0.0}
    shares = values / values.sum()
    squares = values**2
    return {
        "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())),
        "participation_ratio": float(squares.sum() ** 2 / (squares**2).sum()),
    }


def cosines(rows: np.ndarray) -> np.ndarray:
    """Cosine of every pair of rows; 0 beside a zero row. Shape: (n, D) -> (n, n), float64."""
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 1e-12)
    return unit @ unit.T


def mean_cosine(rows: np.ndarray) -> float | None:
    """Mean cosine over all pairs of different rows; None for fewer than two."""
    count = len(rows)
    if count < 2:
        return None
    table = cosines(rows)
    return float((table.sum() - np.trace(table)) / (count * (count - 1)))


def rsa(codebook: np.ndarray, rows: np.ndarray) -> dict[str, float | None]:
    """Representational similarity: do rows lie to each other as the code vectors do?

    Returns:
        Pearson's r and Spearman's rho of the upper triangles of both cosine tables, with the rows
        as they are and with their mean taken away (one shared mean hides what differs).
    """
    numbers: dict[str, float | None] = {}
    upper = np.triu_indices(len(rows), k=1)
    reference = cosines(codebook)[upper]
    for prefix, values in (("", rows), ("centred_", without_mean(rows))):
        found = cosines(values)[upper]
        is_flat = not without_mean(values).any()
        numbers[f"{prefix}rsa_pearson"] = None if is_flat else correlation(reference, found)
        numbers[f"{prefix}rsa_spearman"] = None if is_flat else correlation(ranks(reference), ranks(found))
    return numbers


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's r, or None where one side does not vary."""
    if len(first) < 3 or first.std() < 1e-12 or second.std() < 1e-12:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing their mean rank. Shape: (n,) -> (n,), float64."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return ((ends - counts + ends - 1) / 2)[inverse]


def _mean_rsa(levels: Any) -> dict[str, float | None]:
    """RSA over all levels: the mean of the levels that have one."""
    names = ("rsa_pearson", "rsa_spearman", "centred_rsa_pearson", "centred_rsa_spearman")
    means: dict[str, float | None] = {}
    for name in names:
        values = [level[name] for level in levels if level.get(name) is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def nearest_words(
    rows: torch.Tensor, matrix: torch.Tensor, vocabulary: Vocabulary, tokenizer: Any, codes: Sequence[int]
) -> dict[str, list[str]]:
    """The text tokens whose rows point most nearly the same way, for a few codes of the first level."""
    text_ids = torch.from_numpy(vocabulary.text_token_ids)
    text = matrix.detach().cpu().float()[text_ids]
    mean = text.mean(0)
    centred = torch.nn.functional.normalize(text - mean, dim=-1)
    letter = vocabulary.levels[0].letter
    words = {}
    for code in codes:
        row = torch.nn.functional.normalize(rows[code].cpu().float() - mean, dim=0)
        nearest = (centred @ row).topk(min(8, len(text_ids))).indices
        words[f"<{letter}_{code}>"] = [tokenizer.decode([int(text_ids[index])]) for index in nearest]
    return words
