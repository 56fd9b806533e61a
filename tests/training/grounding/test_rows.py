from __future__ import annotations

from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import torch

from service.bundle import Level
from training.errors import ArmUnavailable
from training.grounding.config import ArmName, GroundingConfig
from training.grounding.diagnostics import cosines
from training.grounding.initialize import ARMS, initial_rows
from training.grounding.rows import (
    Given,
    centroid_rows,
    description_rows,
    gaussian_rows,
    mean_rows,
    shuffle_rows,
    text_rows,
)
from training.grounding.vocabulary import Vocabulary, extend_vocabulary, token_matrices


@pytest.fixture
def given(make_model: Any, items: pl.DataFrame, codes: np.ndarray, levels: list[tuple[str, int]]) -> Any:
    """A model's token matrix, and what row makers are given; settings change the recipe's section."""

    def make(
        books: list[np.ndarray | None] | None = None, items: pl.DataFrame = items, **settings: Any
    ) -> tuple[torch.Tensor, Given]:
        model, tokenizer = make_model(num_padding=5)
        vocabulary = extend_vocabulary(model, tokenizer, levels)
        generator = np.random.default_rng(0)
        made = [generator.normal(size=(size, 6)).astype(np.float32) for _, size in levels]
        config = GroundingConfig(**settings)
        about = Given(vocabulary, items, codes, made if books is None else books, tokenizer, config, seed=3)
        return token_matrices(model)["input"].detach(), about

    return make


def test_every_arm_of_the_method_is_there() -> None:
    assert set(ARMS) == set(get_args(ArmName))
    assert len(ARMS) == 10


def test_the_control_reads_as_many_pairs_as_both_stages() -> None:
    config = GroundingConfig.model_validate(
        {"stage_a": {"steps": 100, "batch_size": 64}, "stage_b": {"steps": 50, "batch_size": 128}}
    )
    assert ARMS["gti"].stage_b(config).steps == 50
    control = ARMS["compute-control"].stage_b(config)
    assert control.steps * control.batch_size == 100 * 64 + 50 * 128
    assert not ARMS["compute-control"].has_stage_a


def test_gaussian_rows_have_the_text_rows_mean_and_covariance() -> None:
    text = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.tensor([3.0, 1.0, 0.5, 0.1])
    ) + torch.tensor([1.0, -2.0, 0.0, 4.0])
    level = Level(letter="a", codebook_size=20_000, first_token_id=400)
    vocabulary = Vocabulary((level,), np.arange(400))
    about = Given(vocabulary, pl.DataFrame(), np.zeros((1, 1), int), [None], None, GroundingConfig(), seed=0)
    matrix = torch.cat([text, torch.full((20_000, 4), 1e6)])
    rows = gaussian_rows(matrix, about)
    torch.testing.assert_close(rows.mean(0), text.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(rows.T.cov(), text.T.cov(), rtol=0.1, atol=0.1)
    assert rows.equal(gaussian_rows(matrix, about))


def test_description_rows_are_the_mean_of_the_texts_tokens(given: Any) -> None:
    matrix, about = given(description_text="title")
    rows = description_rows(matrix, about)
    carried = [
        title for title, code in zip(about.items["title"], about.codes[:, 0], strict=True) if code == 1
    ]
    ids = [
        token for title in carried for token in about.tokenizer(title, add_special_tokens=False)["input_ids"]
    ]
    torch.testing.assert_close(rows[1], matrix[ids].mean(0), rtol=1e-5, atol=1e-6)
    assert rows[7].equal(mean_rows(matrix, about)[7])  # <b_4>, which no item carries


def test_description_needs_texts_and_says_so(given: Any, items: pl.DataFrame) -> None:
    silent = items.with_columns(title=pl.lit(""), description=pl.lit(""))
    matrix, about = given(items=silent)
    with pytest.raises(ArmUnavailable, match="'description' needs item texts, and no item has any"):
        description_rows(matrix, about)
    matrix, about = given(items=silent, centroid_map="regression")
    with pytest.raises(ArmUnavailable, match="use 'projection'"):
        centroid_rows(matrix, about)


def test_projected_centroids_keep_their_angles_and_match_the_text_rows(given: Any) -> None:
    matrix, about = given()
    rows = centroid_rows(matrix, about).double().numpy()
    text = text_rows(matrix, about.vocabulary).double().numpy()
    wanted = np.linalg.norm(text - text.mean(0), axis=1).mean()
    start = 0
    for book, used in zip(about.codebooks, (3, 4), strict=True):
        moved = rows[start : start + used] - text.mean(0)
        centred = book[:used] - book[:used].mean(0)
        np.testing.assert_allclose(cosines(moved), cosines(centred), atol=1e-3)
        assert np.linalg.norm(moved, axis=1).mean() == pytest.approx(wanted, rel=1e-3)
        start += len(book)
    assert rows[7] == pytest.approx(text.mean(0), abs=1e-6)  # no item carries <b_4>


def test_regressed_centroids_lie_near_their_items_words(given: Any, codes: np.ndarray) -> None:
    # Codebooks that say exactly which code it is: regression can then place every code well.
    books = [np.eye(8, dtype=np.float32)[:3], np.eye(8, dtype=np.float32)[3:8]]
    matrix, about = given(books=books, centroid_map="regression")
    found = centroid_rows(matrix, about)
    words = description_rows(matrix, about)
    for place in (slice(0, 3), slice(3, 7)):
        here = torch.nn.functional.normalize(found[place] - found[place].mean(0), dim=-1)
        there = torch.nn.functional.normalize(words[place] - words[place].mean(0), dim=-1)
        assert (here @ there.T).argmax(1).tolist() == list(range(len(here)))


def test_centroids_need_codebooks_but_not_at_a_collision_level(given: Any) -> None:
    matrix, about = given(books=[None, None])
    with pytest.raises(ArmUnavailable, match="need codebooks, and these semantic IDs have none"):
        centroid_rows(matrix, about)
    matrix, about = given(books=[np.eye(3, dtype=np.float32), None])
    rows = centroid_rows(matrix, about)
    assert rows[3:].equal(mean_rows(matrix, about)[3:])
    assert not rows[:3].equal(mean_rows(matrix, about)[:3])


def test_shuffling_moves_every_used_row_within_its_level(given: Any) -> None:
    _, about = given()
    rows = torch.arange(8.0)[:, None].expand(8, 4).clone()
    shuffled = shuffle_rows(rows, about)[:, 0].long().tolist()
    assert sorted(shuffled[:3]) == [0, 1, 2]
    assert sorted(shuffled[3:7]) == [3, 4, 5, 6]
    assert shuffled[7] == 7
    assert all(row != place for place, row in enumerate(shuffled[:7]))


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_every_arm_fills_both_matrices_of_an_untied_model(
    make_model: Any, items: pl.DataFrame, codes: np.ndarray, levels: list[tuple[str, int]], arm: str
) -> None:
    model, tokenizer = make_model(is_tied=False, num_padding=5)
    vocabulary = extend_vocabulary(model, tokenizer, levels)
    books = [np.random.default_rng(0).normal(size=(size, 40)).astype(np.float32) for _, size in levels]
    about = Given(vocabulary, items, codes, books, tokenizer, GroundingConfig(), seed=0)
    rows = initial_rows(model, ARMS[arm], about)
    assert set(rows) == {"input", "output"}
    for values in rows.values():
        assert values.shape == (8, 32)
        assert torch.isfinite(values).all()
        assert values.abs().max() < 100  # padding rows hold 1000
