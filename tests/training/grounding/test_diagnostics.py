from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.bundle import Level
from training.grounding.diagnostics import (
    code_uses,
    describe_rows,
    mean_cosine,
    ranks,
    rsa,
    spectrum_numbers,
    without_mean,
)
from training.grounding.picture import draw
from training.grounding.vocabulary import Vocabulary


def test_ranks_of_known_spectra() -> None:
    assert spectrum_numbers(np.eye(6)) == pytest.approx({"effective_rank": 6.0, "participation_ratio": 6.0})
    one = spectrum_numbers(np.ones((6, 4)))
    assert one == pytest.approx({"effective_rank": 1.0, "participation_ratio": 1.0})
    two = spectrum_numbers(np.diag([3.0, 1.0]))
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert two["effective_rank"] == pytest.approx(np.exp(entropy))
    assert two["participation_ratio"] == pytest.approx(100 / 82)
    assert spectrum_numbers(np.zeros((3, 3)))["effective_rank"] == 0.0


def test_equal_rows_have_no_spread_and_no_rsa() -> None:
    rows = np.tile(np.random.default_rng(0).normal(size=8).astype(np.float32), (5, 1))
    assert mean_cosine(rows) == pytest.approx(1.0)
    assert spectrum_numbers(without_mean(rows))["effective_rank"] == 0.0
    assert set(rsa(np.eye(5), rows).values()) == {None}


def test_rsa_sees_a_rotated_codebook_and_not_a_random_one() -> None:
    generator = np.random.default_rng(0)
    codebook = generator.normal(size=(30, 6))
    rotation, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    assert rsa(codebook, codebook @ rotation * 3)["rsa_pearson"] == pytest.approx(1.0)
    assert rsa(codebook, codebook @ rotation * 3)["rsa_spearman"] == pytest.approx(1.0)
    shifted = codebook @ rotation + 50.0  # one shared mean hides the structure unless it is taken away
    found = rsa(codebook - codebook.mean(0), shifted)
    assert found["centred_rsa_pearson"] == pytest.approx(1.0)
    random = rsa(codebook, generator.normal(size=(30, 6)))["rsa_pearson"]
    assert random is not None
    assert abs(random) < 0.2


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_ranks_share_ties(values: list[int]) -> None:
    found = ranks(np.asarray(values, dtype=float))
    expected = [np.mean([p for p, v in enumerate(sorted(values)) if v == value]) for value in values]
    assert found.tolist() == pytest.approx(expected)


def test_unused_codes_are_left_out_and_everything_is_json(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(20, 8, generator=generator)
    levels = (
        Level(letter="a", codebook_size=4, first_token_id=10),
        Level(letter="b", codebook_size=6, first_token_id=14),
    )
    vocabulary = Vocabulary(levels, np.arange(10))
    codes = np.asarray([[0, 0], [1, 1], [3, 2]])
    uses = code_uses(codes, [4, 6], [np.random.default_rng(0).normal(size=(4, 5)), None])
    rows = matrix[10:].clone()
    described = describe_rows(rows, matrix, vocabulary, uses)
    rows[[2, 7, 8, 9]] = 1e6  # codes that no item carries
    assert describe_rows(rows, matrix, vocabulary, uses) == described
    assert described["levels"]["a"]["codes_used"] == 3
    assert "rsa_pearson" in described["levels"]["a"]
    assert "rsa_pearson" not in described["levels"]["b"]
    json.dumps(described)
    draw(tmp_path / "picture.png", {"before": rows.numpy(), "after": rows.numpy()}, matrix[:10].numpy())
    assert (tmp_path / "picture.png").stat().st_size > 5000
