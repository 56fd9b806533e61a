from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.bundle import ItemPrior, Relation
from service.errors import BundleError


def make_prior() -> ItemPrior:
    """Four items: 0 is followed by 1 (strength 2) and 3 (1), 2 by itself (4)."""
    relation = Relation(
        "next",
        weight=2.0,
        floor=0.5,
        recency=0.5,
        starts=np.array([0, 2, 2, 3, 3]),
        related=np.array([1, 3, 2], dtype=np.int32),
        strength=np.array([2, 1, 4], dtype=np.float32),
    )
    return ItemPrior(2, np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32), (relation,))


def test_scores_are_the_documented_sum() -> None:
    prior = make_prior()
    candidates, logprobs = np.array([0, 1, 2, 3, -1]), np.array([-1.0, -2, -3, -4, -5])
    # of three items of history the newest two count: 0 at age 1, 2 at age 0
    found = prior.scores(logprobs, candidates, np.array([2, 0, 2]))
    strengths = np.array([0, 0.5 * 2, 4, 0.5 * 1, 0])
    expected = logprobs + np.array([0.1, 0.2, 0.3, 0.4, 0]) + 2.0 * np.log(0.5 + strengths)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    unknown = prior.scores(logprobs, candidates, np.array([-1, -1]))
    np.testing.assert_allclose(unknown - logprobs - [0.1, 0.2, 0.3, 0.4, 0], 2 * np.log(0.5), rtol=1e-6)


def test_saved_and_read_again_scores_alike(tmp_path: Path) -> None:
    prior = make_prior()
    prior.save(tmp_path)
    again = ItemPrior.load(tmp_path, 4)
    arguments = np.array([-1.0, -2, -3]), np.array([0, 1, 2]), np.array([0, 2])
    assert np.array_equal(prior.scores(*arguments), again.scores(*arguments))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bias", np.zeros(5, dtype=np.float32)),
        ("bias", np.array([0, np.nan, 0, 0], dtype=np.float32)),
        ("next_starts", np.array([0, 2, 1, 3, 3])),
        ("next_related", np.array([3, 1, 2], dtype=np.int32)),
        ("next_related", np.array([1, 4, 2], dtype=np.int32)),
        ("next_strength", np.array([2, -1, 4], dtype=np.float32)),
    ],
)
def test_a_damaged_prior_is_refused(tmp_path: Path, name: str, value: np.ndarray) -> None:
    make_prior().save(tmp_path)
    np.save(tmp_path / f"{name}.npy", value)
    with pytest.raises(BundleError, match="export again"):
        ItemPrior.load(tmp_path, 4)


def test_a_missing_file_or_unknown_setting_is_refused(tmp_path: Path) -> None:
    make_prior().save(tmp_path)
    (tmp_path / "next_related.npy").unlink()
    with pytest.raises(BundleError, match="damaged"):
        ItemPrior.load(tmp_path, 4)
    (tmp_path / "prior.json").write_text('{"history_limit": 2, "surprise": 1}')
    with pytest.raises(BundleError, match="surprise"):
        ItemPrior.load(tmp_path, 4)
