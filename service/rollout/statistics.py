"""Rates of an experiment with intervals that hold although a user asks and clicks many times.

Answers of one user are not independent, so the usual interval of a proportion would be far too narrow.
Users are spread over buckets by a hash, so the sums of the buckets are independent and alike: the rate is
a ratio of two sums, and its variance follows from how the buckets scatter around it (delta method for a
ratio, clusters = buckets). Source: Cochran, Sampling Techniques (1977), section 6.4.

Shapes: J buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z95 = 1.96
NO_EVENT_UPPER = 3.69  # -ln(0.025): the largest expected count under which none at all is not yet rare


@dataclass(frozen=True)
class Rate:
    """Events per answer.

    Attributes:
        low, high: 95 % interval.
        standard_error: of `value`.
    """

    value: float
    low: float
    high: float
    standard_error: float


def rate(answers_J: np.ndarray, events_J: np.ndarray) -> Rate | None:
    """Events per answer, from the sums of the buckets.

    Args:
        answers_J, events_J: counts. Shape: (J,), >= 0.

    Returns:
        None without any answer.
    """
    num_answers, num_events, num_buckets = float(answers_J.sum()), float(events_J.sum()), len(answers_J)
    if not num_answers:
        return None
    value = num_events / num_answers
    if not num_events:
        return Rate(0.0, 0.0, NO_EVENT_UPPER / num_answers, 1 / num_answers)
    scatter = float(((events_J - value * answers_J) ** 2).sum()) * num_buckets / (num_buckets - 1)
    # Never narrower than if every event came by itself: few users can all sit in one bucket.
    error = math.sqrt(max(scatter, num_events)) / num_answers
    return Rate(value, max(0.0, value - Z95 * error), value + Z95 * error, error)


def difference(a: Rate | None, b: Rate | None) -> tuple[float, float, float] | None:
    """B's rate less A's, with its 95 % interval; None unless both are known."""
    if a is None or b is None:
        return None
    error = math.hypot(a.standard_error, b.standard_error)
    gain = b.value - a.value
    return gain, gain - Z95 * error, gain + Z95 * error
