"""Metrics agree with ir-measures, with hand-worked figures, and with what their names promise."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Success, nDCG

from training.evaluation.intervals import bootstrap_intervals, paired_intervals
from training.evaluation.metrics import (
    NO_ITEM,
    coverage,
    gains,
    popularity_share,
    ranking_metrics,
    ranks_of,
)

NUM_ITEMS = 60


@st.composite
def recommendations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    num_rows, places = draw(st.integers(1, 8)), draw(st.integers(1, 55))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    lists = np.stack([generator.permutation(NUM_ITEMS)[:places] for _ in range(num_rows)])
    ends = generator.integers(0, places + 1, size=num_rows)
    lists[np.arange(places) >= ends[:, None]] = NO_ITEM
    return lists, generator.integers(0, NUM_ITEMS, size=num_rows)


@settings(max_examples=40, deadline=None)
@given(recommendations())
def test_metrics_agree_with_ir_measures(case: tuple[np.ndarray, np.ndarray]) -> None:
    lists, targets = case
    run = {
        str(row): {str(item): float(-place) for place, item in enumerate(items) if item != NO_ITEM}
        for row, items in enumerate(lists)
    }
    run = {row: scores or {"none": 0.0} for row, scores in run.items()}
    qrels = {str(row): {str(target): 1} for row, target in enumerate(targets)}
    cutoffs = (1, 3, 5, 10, 20, 50)
    measures = [*(Success @ k for k in cutoffs), *(nDCG @ k for k in cutoffs), RR]
    expected = ir_measures.calc_aggregate(measures, qrels, run)
    ours = ranking_metrics(ranks_of(lists, targets))
    for k in cutoffs:
        assert ours[f"HR@{k}"] == pytest.approx(expected[Success @ k])
        assert ours[f"NDCG@{k}"] == pytest.approx(expected[nDCG @ k])
    assert ours["MRR"] == pytest.approx(expected[RR])


def test_by_hand() -> None:
    metrics = ranking_metrics(np.array([1, 3, 0, 11]))
    assert metrics["HR@1"] == 0.25
    assert metrics["HR@10"] == 0.5
    assert metrics["HR@20"] == 0.75
    assert metrics["NDCG@10"] == pytest.approx((1 + 0.5) / 4)
    assert metrics["MRR"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 4)


def test_no_rows_is_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="no rows"):
        ranking_metrics(np.array([], dtype=np.int64))


def test_coverage_and_popularity_share() -> None:
    lists = np.array([[0, 1, 2], [0, 3, NO_ITEM]])
    popularity = np.zeros(200)
    popularity[[0, 3]] = 9
    assert coverage(lists, 200, 2) == 3 / 200
    assert popularity_share(lists, popularity, 3) == 3 / 5
    assert popularity_share(np.full((2, 3), NO_ITEM), popularity, 3) == 0.0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200))
def test_intervals_hold_the_figure_and_never_leave_the_range(ranks: list[int]) -> None:
    figures = ranking_metrics(np.array(ranks))
    for name, (low, high) in bootstrap_intervals(np.array(ranks), num_resamples=200).items():
        assert 0 <= low <= high <= 1
        assert low - 0.5 <= figures[name] <= high + 0.5


def test_intervals_are_as_wide_as_theory_says() -> None:
    ranks = np.array([1] * 1000 + [0] * 9000)
    low, high = bootstrap_intervals(ranks, num_resamples=5000)["HR@1"]
    spread = 1.96 * (0.1 * 0.9 / 10_000) ** 0.5
    assert low == pytest.approx(0.1 - spread, rel=0.02)
    assert high == pytest.approx(0.1 + spread, rel=0.02)
    assert bootstrap_intervals(ranks) == bootstrap_intervals(ranks)


def test_pairing_sees_a_small_steady_difference() -> None:
    generator = np.random.default_rng(0)
    ranks = generator.integers(0, 30, size=3000)
    worse = np.where(ranks > 0, ranks + 1, 0)
    low, high = paired_intervals(ranks, worse)["NDCG@10"]
    assert 0 < low < high
    assert paired_intervals(ranks, ranks)["NDCG@10"] == (0.0, 0.0)
    alone = gains(ranks)["NDCG@10"].mean() - gains(worse)["NDCG@10"].mean()
    assert low < alone < high
    with pytest.raises(ValueError, match="paired rows"):
        paired_intervals(ranks, ranks[1:])
