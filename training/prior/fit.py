"""Weights of a log-linear choice among candidates, by Newton's method.

Shapes: R rows, F features, C candidates of a row (rows differ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_STEPS = 25


@dataclass(frozen=True)
class Choice:
    """One row: what could be recommended, and what came next.

    Attributes:
        features: Shape: (C, F), float64.
        target: place of the right candidate, in [0, C).
    """

    features: np.ndarray
    target: int


def fit_weights(choices: Sequence[Choice], *, start: np.ndarray, ridge: float) -> np.ndarray:
    """Weights with the highest likelihood of the targets, sum of log softmax(features @ weights).

    Args:
        choices: rows whose target is among their candidates.
        start: weights to begin at, and to be pulled towards. Shape: (F,).
        ridge: strength of the pull, in units of standardized features.

    Returns:
        Shape: (F,), float64.
    """
    if not choices:
        return start.copy()
    spread = np.sqrt(np.mean([choice.features.var(axis=0) for choice in choices], axis=0)) + 1e-9
    weights = start.copy()
    best = _objective(choices, weights, start, spread, ridge)
    for _ in range(_STEPS):
        gradient = -ridge * (weights - start) * spread**2
        curvature = ridge * np.diag(spread**2)
        for choice in choices:
            chances = _softmax(choice.features @ weights)
            mean = chances @ choice.features
            gradient += choice.features[choice.target] - mean
            centred = choice.features - mean
            curvature += (centred * chances[:, None]).T @ centred
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(start)), gradient)
        size = 1.0
        while size > 1e-4:
            value = _objective(choices, weights + size * step, start, spread, ridge)
            if value >= best:
                break
            size /= 2
        else:
            return weights
        is_done = value - best < 1e-6 * len(choices)
        weights, best = weights + size * step, value
        if is_done:
            break
    return weights


def _objective(
    choices: Sequence[Choice], weights: np.ndarray, start: np.ndarray, spread: np.ndarray, ridge: float
) -> float:
    total = -0.5 * ridge * float((((weights - start) * spread) ** 2).sum())
    for choice in choices:
        scores = choice.features @ weights
        top = scores.max()
        total += float(scores[choice.target] - top - np.log(np.exp(scores - top).sum()))
    return total


def _softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max())
    return raised / raised.sum()
