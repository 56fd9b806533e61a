"""Who sits where, what names of answers say, and intervals that hold for users who click in bursts."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.catalogue.tiers import TIERS, tiers_of
from service.observability.coverage import Coverage
from service.recommendation_id import Origin, experiment_tag, new_recommendation_id, origin_of
from service.rollout.experiment import NUM_BUCKETS, Experiment
from service.rollout.statistics import difference, rate
from service.rollout.tally import Tally

BUNDLE = "0123456789abcdef"


def experiment(share: float, experiment_id: str = "00000001") -> Experiment:
    return Experiment.new("x", BUNDLE, "f" * 16, share).model_copy(update={"experiment_id": experiment_id})


def test_shares_are_met_and_buckets_are_even() -> None:
    num_users = 20_000
    for share in (0.01, 0.1, 0.5, 0.9, 1.0):
        seats = [experiment(share).seat(f"user:{number}") for number in range(num_users)]
        num_b = sum(seat.variant == "b" for seat in seats)
        assert abs(num_b - share * num_users) <= 4 * np.sqrt(num_users * share * (1 - share))
        counts = np.bincount([seat.bucket for seat in seats], minlength=NUM_BUCKETS)
        expected = num_users / NUM_BUCKETS
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert len(counts) == NUM_BUCKETS and chi_square < 120  # 63 degrees of freedom: p < 2e-5
    is_b = np.array(
        [seat.variant == "b" for seat in (experiment(0.5).seat(f"{n}") for n in range(num_users))]
    )
    buckets = np.array([experiment(0.5).seat(f"{n}").bucket for n in range(num_users)])
    by_bucket = np.array([is_b[buckets == bucket].mean() for bucket in range(NUM_BUCKETS)])
    assert np.abs(by_bucket - 0.5).max() < 0.15  # the bucket says nothing about the variant


def test_a_larger_share_moves_nobody_back_and_experiments_are_independent() -> None:
    users = [f"user:{number}" for number in range(5000)]
    small = {user for user in users if experiment(0.1).seat(user).variant == "b"}
    large = {user for user in users if experiment(0.6).seat(user).variant == "b"}
    assert small < large
    other = {user for user in users if experiment(0.6, "00000002").seat(user).variant == "b"}
    assert abs(len(large & other) / len(users) - 0.36) < 0.03


def test_names_of_answers_say_where_they_come_from() -> None:
    assert origin_of(new_recommendation_id(BUNDLE)) == Origin(BUNDLE, "a")
    assert origin_of(new_recommendation_id(BUNDLE, "forced")) == Origin(BUNDLE, "forced")
    tag = experiment_tag("0a0b0c0d", "b", 63)
    assert origin_of(new_recommendation_id(BUNDLE, tag)) == Origin(BUNDLE, "b", "0a0b0c0d", 63)
    for wrong in ("", "made up", BUNDLE, f"{BUNDLE}-0a0b0c0dc00-{'0' * 32}", f"{BUNDLE}-{'0' * 31}"):
        assert origin_of(wrong) is None


def test_the_interval_covers_the_truth_although_users_click_in_bursts() -> None:
    # Users differ much in how often they ask and click: per answer, clicks are far from independent.
    rng = np.random.default_rng(0)
    num_runs, num_users = 400, 3000
    covered, naive, unequal = 0, 0, 0
    for _ in range(num_runs):
        answers = 1 + rng.poisson(rng.gamma(0.5, 10, num_users))
        clicks = rng.binomial(answers, rng.beta(0.2, 1.8, num_users))
        buckets = rng.integers(0, NUM_BUCKETS, num_users)
        sums = [np.bincount(buckets, weights=each, minlength=NUM_BUCKETS) for each in (answers, clicks)]
        found = rate(*sums)
        assert found is not None
        covered += found.low <= 0.1 <= found.high
        error = np.sqrt(0.1 * 0.9 / answers.sum())
        naive += abs(found.value - 0.1) <= 1.96 * error
        halves = [[np.where(np.arange(NUM_BUCKETS) % 2 == half, each, 0) for each in sums] for half in (0, 1)]
        gain = difference(rate(*halves[0]), rate(*halves[1]))
        assert gain is not None
        unequal += not gain[1] <= 0 <= gain[2]
    assert 0.92 <= covered / num_runs <= 0.99
    assert naive / num_runs < 0.8  # what the usual interval of a proportion would have promised
    assert unequal / num_runs < 0.09  # two halves of the same users rarely look different


def test_rates_of_little_or_nothing() -> None:
    none, some = np.zeros(NUM_BUCKETS), np.bincount([3], minlength=NUM_BUCKETS)
    assert rate(none, none) is None and difference(None, rate(some, some)) is None
    nothing = rate(100 * some, none)
    assert nothing is not None and (nothing.value, nothing.low) == (0, 0) and 0.03 < nothing.high < 0.05
    one = rate(100 * some, some)  # all in one bucket: no scatter to be seen, yet one event is little
    assert one is not None and one.low == 0 and one.high > 0.02


@pytest.mark.anyio
async def test_counts_wait_while_redis_fails_and_forged_experiments_count_nowhere(clean_redis) -> None:
    import redis.asyncio as aioredis

    from service.catalogue import keys
    from service.rollout.tally import read_counts

    tally, seat = Tally(), experiment(1).seat("user:1")
    tally.answer(seat, "b")
    tally.answer(seat, "a")  # b could not answer
    tally.event(Origin(BUNDLE, "b", seat.experiment_id, seat.bucket), "click")
    tally.event(Origin(BUNDLE, "b", "deadbeef", 0), "click")
    tally.event(Origin(BUNDLE, "b", seat.experiment_id, 200), "click")
    away = aioredis.Redis(unix_socket_path="/nonexistent")
    with pytest.raises(aioredis.ConnectionError):
        await tally.flush(away)
    client = aioredis.from_url(clean_redis.url)
    await client.hset(keys.EXPERIMENTS, seat.experiment_id, experiment(1).model_dump_json())
    await asyncio.gather(*(tally.flush(client) for _ in range(3)))
    counts = await read_counts(client, seat.experiment_id)
    assert {key: int(each.sum()) for key, each in counts.of_buckets.items()} == {
        ("b", "answers"): 1,
        ("a", "answers"): 1,
        ("b", "fallbacks"): 1,
        ("b", "click"): 1,
    }
    assert not await client.exists(keys.experiment_counts("deadbeef"))
    await client.aclose()


def test_tiers_follow_from_popularity() -> None:
    names = [TIERS[place] for place in tiers_of(np.array([0, 5, 50, 0, 25, 20]))]
    assert names == ["cold", "tail", "head", "cold", "tail", "tail"]
    assert [TIERS[place] for place in tiers_of(np.zeros(2, dtype=np.int64))] == ["cold", "cold"]
    assert len(tiers_of(np.zeros(0, dtype=np.int64))) == 0


def test_coverage_counts_different_items_of_the_last_hour() -> None:
    now = [0.0]
    coverage = Coverage(20_000, clock=lambda: now[0])
    assert coverage.num_items() == 0
    for _ in range(3):
        coverage.note(f"item-{number}" for number in range(8000))
    assert coverage.num_items() == pytest.approx(8000, rel=0.03)
    now[0] = 50 * 60
    coverage.note(f"item-{number}" for number in range(6000, 12_000))
    assert coverage.num_items() == pytest.approx(12_000, rel=0.03)
    now[0] = 70 * 60
    assert coverage.num_items() == pytest.approx(6000, rel=0.03)
