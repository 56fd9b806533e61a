"""Bootstrap intervals: how far a figure could be off with other test rows of the same kind.

Every metric here depends on a row only through its rank, so resampling R rows with replacement is
one multinomial draw over the histogram of ranks: exact, and quick for any number of rows.
"""

from __future__ import annotations

import numpy as np

from training.evaluation.metrics import gains

_TAILS = (2.5, 97.5)


def bootstrap_intervals(
    ranks_R: np.ndarray, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile interval of every metric.

    Args:
        ranks_R: ranks from 1, or 0 for a miss. Shape: (R,).
        num_resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        Low and high end per metric name.
    """
    values, counts = np.unique(ranks_R, return_counts=True)
    return _intervals(gains(values), counts, num_resamples, seed)


def paired_intervals(
    ranks_R: np.ndarray, others_R: np.ndarray, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % interval of the difference of every metric between two methods on the same rows.

    An interval that holds 0 means: no difference shown.

    Args:
        ranks_R: ranks by the first method. Shape: (R,).
        others_R: ranks by the method that is subtracted, same rows. Shape: (R,).
        num_resamples: bootstrap resamples.
        seed: of the resampling.
    """
    if len(ranks_R) != len(others_R):
        raise ValueError(f"paired rows needed, got {len(ranks_R)} and {len(others_R)}")
    pairs, counts = np.unique(np.stack([ranks_R, others_R], axis=1), axis=0, return_counts=True)
    first, second = gains(pairs[:, 0]), gains(pairs[:, 1])
    return _intervals({name: first[name] - second[name] for name in first}, counts, num_resamples, seed)


def _intervals(
    gain_of_kind: dict[str, np.ndarray], counts: np.ndarray, num_resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    num_rows = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(num_rows, counts / num_rows, size=num_resamples)
    result = {}
    for name, gain in gain_of_kind.items():
        low, high = np.percentile(drawn @ gain / num_rows, _TAILS)
        result[name] = (float(low), float(high))
    return result
