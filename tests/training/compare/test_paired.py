from __future__ import annotations

import numpy as np
import pytest

from training.compare.paired import ArmRanks, all_tests, holm, paired_tests
from training.compare.report import verdict


def ranks_of(hits: np.ndarray, users: np.ndarray) -> ArmRanks:
    """Rank 1 where the target was hit, 0 elsewhere. Shape of hits: (S, R)."""
    return ArmRanks(hits.astype(np.int64), users)


def test_a_clear_difference_is_found_and_its_size_is_right() -> None:
    generator = np.random.default_rng(0)
    users = np.asarray([f"u{row // 2}" for row in range(1000)])
    first, second = generator.random((3, 1000)) < 0.30, generator.random((3, 1000)) < 0.15
    test = paired_tests(ranks_of(first, users), ranks_of(second, users), num_resamples=500)["HR@10"]
    assert test["difference"] == pytest.approx(first.mean() - second.mean(), abs=1e-6)
    assert 0.1 < test["low"] < test["difference"] < test["high"] < 0.2
    assert test["p"] == pytest.approx(2 / 501, abs=1e-6)
    swapped = paired_tests(ranks_of(second, users), ranks_of(first, users), num_resamples=500)["HR@10"]
    assert swapped["difference"] == -test["difference"]
    assert swapped["high"] < 0


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "words"),
    [
        (0.01, 0.02, 0.01, "better"),
        (-0.02, -0.01, 0.01, "worse"),
        (0.01, 0.02, 0.09, "better, but not after the correction"),
        (-0.01, 0.02, 0.4, "no difference shown"),
    ],
)
def test_words_for_a_test(low: float, high: float, p_holm: float, words: str) -> None:
    assert verdict({"low": low, "high": high, "p_holm": p_holm}) == words


def test_equal_arms_show_no_difference() -> None:
    generator = np.random.default_rng(1)
    users = np.asarray([f"u{row}" for row in range(500)])
    hits = generator.random((3, 500)) < 0.2
    same = paired_tests(ranks_of(hits, users), ranks_of(hits, users), num_resamples=200)["NDCG@10"]
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_twenty_tests_of_noise_are_rarely_called_differences() -> None:
    generator = np.random.default_rng(2)
    users = np.asarray([f"u{row // 3}" for row in range(600)])
    calls = 0
    for seed in range(20):
        hits = generator.random((2, 3, 600)) < 0.2
        test = paired_tests(ranks_of(hits[0], users), ranks_of(hits[1], users), num_resamples=300, seed=seed)
        calls += test["HR@10"]["p"] < 0.05
    assert calls <= 3


def test_a_users_rows_count_as_one_draw() -> None:
    """A difference that one user's many rows make is no finding about users."""
    generator = np.random.default_rng(3)
    rows_of_one, others = 300, 300
    many = np.asarray(["u0"] * rows_of_one + [f"u{row}" for row in range(1, others + 1)])
    apart = np.asarray([f"u{row}" for row in range(rows_of_one + others)])
    noise = generator.random((2, 2, others)) < 0.2
    first = np.concatenate([np.ones((2, rows_of_one), bool), noise[0]], axis=1)
    second = np.concatenate([np.zeros((2, rows_of_one), bool), noise[1]], axis=1)
    clustered = paired_tests(ranks_of(first, many), ranks_of(second, many), num_resamples=300)["HR@10"]
    independent = paired_tests(ranks_of(first, apart), ranks_of(second, apart), num_resamples=300)["HR@10"]
    assert clustered["difference"] == independent["difference"]
    assert clustered["low"] < 0.05 < independent["low"]


def test_one_lucky_seed_is_not_enough() -> None:
    users = np.asarray([f"u{row}" for row in range(400)])
    first, second = np.zeros((3, 400), bool), np.zeros((3, 400), bool)
    first[0, :200] = True
    test = paired_tests(ranks_of(first, users), ranks_of(second, users), num_resamples=500)["HR@10"]
    assert test["difference"] == pytest.approx(200 / 1200, abs=1e-6)
    assert test["low"] == 0.0


def test_other_rows_or_seeds_cannot_be_paired() -> None:
    users = np.asarray(["a", "b"])
    one = ArmRanks(np.ones((2, 2), int), users)
    with pytest.raises(ValueError, match="same test rows"):
        paired_tests(one, ArmRanks(np.ones((2, 2), int), users[::-1]), num_resamples=100)
    with pytest.raises(ValueError, match="as many seeds"):
        paired_tests(one, ArmRanks(np.ones((1, 2), int), users), num_resamples=100)


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_all_tests_holds_every_arm_once_and_the_named_pairs() -> None:
    users = np.asarray(["a", "b", "c"])
    arms = {name: ArmRanks(np.full((2, 3), rank), users) for name, rank in (("mean", 3), ("x", 1), ("y", 2))}
    found = all_tests(arms, "mean", [("x", "y"), ("x", "absent")], base_model="b", num_resamples=100)
    assert {(test["arm"], test["against"]) for test in found} == {("x", "mean"), ("y", "mean"), ("x", "y")}
    assert all(test["p_holm"] >= test["p"] and test["base_model"] == "b" for test in found)
