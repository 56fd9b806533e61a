"""Paired tests between arms: is a difference more than other users or other seeds could make?

Shapes: S seeds, R test rows, U users, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.evaluation.metrics import gains

TESTED = ("HR@10", "NDCG@10", "HR@50")


@dataclass(frozen=True, eq=False)
class ArmRanks:
    """What an arm did with every test row.

    Attributes:
        ranks: rank of the target, 0 = missed. Shape: (S, R), int64.
        users: whose row it is. Shape: (R,), str.
    """

    ranks: np.ndarray
    users: np.ndarray


def paired_tests(
    first: ArmRanks, second: ArmRanks, *, num_resamples: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Differences first minus second with 95 % intervals and two-sided p.

    Users are resampled with all their rows, because a user's rows are not independent, and seeds are
    resampled too (seed i of one arm stands against seed i of the other). So an interval covers other
    users and other seeds; with three seeds the second part is rough, and rather too small.

    Args:
        first, second: the same rows in the same order, the same number of seeds.
        num_resamples: B; the smallest p that can be told is 2 / (B + 1).
        seed: of the resampling.

    Returns:
        metric -> difference, low, high, p.
    """
    if first.ranks.shape != second.ranks.shape or (first.users != second.users).any():
        raise ValueError("paired rows needed: both arms on the same test rows, with as many seeds")
    num_seeds = len(first.ranks)
    _, user_of_row = np.unique(first.users, return_inverse=True)
    rows_of_user = np.bincount(user_of_row)
    num_users = len(rows_of_user)
    generator = np.random.default_rng(seed)
    users_BU = generator.multinomial(num_users, np.full(num_users, 1 / num_users), size=num_resamples)
    seeds_BS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)
    rows_B = users_BU @ rows_of_user
    of_first, of_second = gains(first.ranks), gains(second.ranks)
    tests = {}
    for metric in TESTED:
        difference_SR = of_first[metric] - of_second[metric]
        sums_US = np.stack(
            [np.bincount(user_of_row, weights=row, minlength=num_users) for row in difference_SR], 1
        )
        drawn_B = ((users_BU @ sums_US) * seeds_BS).sum(1) / (num_seeds * rows_B)
        low, high = np.percentile(drawn_B, (2.5, 97.5))
        beyond = min((drawn_B <= 0).sum(), (drawn_B >= 0).sum())
        tests[metric] = {
            "difference": round(float(difference_SR.mean()), 6),
            "low": round(float(low), 6),
            "high": round(float(high), 6),
            "p": round(min(1.0, 2 * (int(beyond) + 1) / (num_resamples + 1)), 6),
        }
    return tests


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given."""
    order = np.argsort(values)
    corrected = np.empty(len(values))
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = highest
    return [round(float(value), 6) for value in corrected]


def all_tests(
    arms: Mapping[str, ArmRanks],
    against: str,
    pairs: Sequence[tuple[str, str]],
    *,
    base_model: str,
    num_resamples: int,
) -> list[dict[str, Any]]:
    """Every arm against one, and the further pairs; `p_holm` corrects for the tests of one metric."""
    wanted = [(arm, against) for arm in arms if arm != against and against in arms]
    wanted += [pair for pair in pairs if set(pair) <= set(arms) and pair not in wanted]
    found = [
        {"arm": arm, "against": other, "base_model": base_model, "metric": metric, **numbers}
        for arm, other in wanted
        for metric, numbers in paired_tests(arms[arm], arms[other], num_resamples=num_resamples).items()
    ]
    for metric in TESTED:
        tests = [test for test in found if test["metric"] == metric]
        for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
            test["p_holm"] = corrected
    return found
