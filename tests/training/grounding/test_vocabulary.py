from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.base_model.load import load_model, save_model
from training.base_model.text import encode_plain
from training.errors import TrainingError
from training.grounding.config import GroundingConfig
from training.grounding.initialize import ARMS, initial_rows
from training.grounding.rows import Given
from training.grounding.vocabulary import (
    Vocabulary,
    extend_vocabulary,
    read_new_rows,
    spell_levels,
    token_matrices,
    write_new_rows,
)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("num_padding", [0, 3, 8, 50])
def test_ids_are_contiguous_and_the_size_is_exact(
    make_model: Any, levels: list[tuple[str, int]], is_tied: bool, num_padding: int
) -> None:
    model, tokenizer = make_model(is_tied=is_tied, num_padding=num_padding)
    num_text = len(tokenizer)
    text_rows = model.get_input_embeddings().weight[:num_text].clone()
    vocabulary = extend_vocabulary(model, tokenizer, levels)
    assert [level.first_token_id for level in vocabulary.levels] == [num_text, num_text + 3]
    assert tokenizer.convert_tokens_to_ids(spell_levels(levels)) == list(range(num_text, num_text + 8))
    assert model.config.vocab_size == num_text + 8
    for matrix in token_matrices(model).values():
        assert matrix.shape[0] == num_text + 8
    assert len(token_matrices(model)) == (1 if is_tied else 2)
    assert model.get_input_embeddings().weight[:num_text].equal(text_rows)
    assert vocabulary.text_token_ids.tolist() == list(range(num_text))
    assert vocabulary.num_new == 8


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_mean_leaves_padding_rows_out(
    make_model: Any, items: pl.DataFrame, codes: np.ndarray, levels: list[tuple[str, int]], is_tied: bool
) -> None:
    model, tokenizer = make_model(is_tied=is_tied, num_padding=20)
    num_text = len(tokenizer)
    expected = {
        name: matrix[:num_text].detach().double().mean(0).float()
        for name, matrix in token_matrices(model).items()
    }
    vocabulary = extend_vocabulary(model, tokenizer, levels)
    given = Given(vocabulary, items, codes, [None, None], tokenizer, GroundingConfig(), seed=0)
    write_new_rows(model, vocabulary, initial_rows(model, ARMS["mean"], given))
    for name, rows in read_new_rows(model, vocabulary).items():
        assert rows.shape == (8, 32)
        assert all(row.equal(expected[name]) for row in rows)
    if not is_tied:
        assert not expected["input"].equal(expected["output"])


def test_sids_are_spelled_by_their_tokens(make_model: Any, levels: list[tuple[str, int]]) -> None:
    model, tokenizer = make_model()
    vocabulary = extend_vocabulary(model, tokenizer, levels)
    codes = np.asarray([[2, 4], [0, 0]])
    ids = tokenizer.encode("<a_2><b_4><a_0><b_0>", add_special_tokens=False)
    assert vocabulary.tokens_of(codes).flatten().tolist() == ids
    assert tokenizer.decode(ids) == "<a_2><b_4><a_0><b_0>"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.sampled_from(["<a_1>", "<b_0>", "<", "a_1", ">", "<|begin|>", "tea", " ", "_", "1"]))
)
def test_text_of_people_never_becomes_a_sid_token(make_model: Any, parts: list[str]) -> None:
    tokenizer = _extended(make_model)
    first_new = tokenizer.convert_tokens_to_ids("<a_0>")
    text = "".join(parts)
    ids = encode_plain(tokenizer, [text])[0]
    assert all(2 < token < first_new for token in ids)
    assert tokenizer.decode(ids) == text


_CACHE: list[Any] = []


def _extended(make_model: Any) -> Any:
    if not _CACHE:
        model, tokenizer = make_model()
        extend_vocabulary(model, tokenizer, [("a", 3), ("b", 5)])
        _CACHE.append(tokenizer)
    return _CACHE[0]


@pytest.mark.parametrize("is_tied", [True, False])
def test_an_extended_model_loads_again(
    make_model: Any, levels: list[tuple[str, int]], tmp_path: Path, is_tied: bool
) -> None:
    model, tokenizer = make_model(is_tied=is_tied)
    vocabulary = extend_vocabulary(model, tokenizer, levels)
    save_model(model, tokenizer, tmp_path / "model")
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded, loaded_tokenizer = load_model(tmp_path / "model")
    again = Vocabulary.load(tmp_path / "vocabulary.json", loaded_tokenizer)
    assert again.levels == vocabulary.levels
    assert (again.text_token_ids == vocabulary.text_token_ids).all()
    assert encode_plain(loaded_tokenizer, ["<a_1> tea"]) == encode_plain(tokenizer, ["<a_1> tea"])
    assert torch.equal(loaded.get_output_embeddings().weight, model.get_output_embeddings().weight)


def test_a_model_with_sid_tokens_is_refused(make_model: Any, levels: list[tuple[str, int]]) -> None:
    model, tokenizer = make_model()
    extend_vocabulary(model, tokenizer, levels)
    with pytest.raises(TrainingError, match="holds <a_0> already"):
        extend_vocabulary(model, tokenizer, levels)


def test_a_tokenizer_of_another_model_is_refused(make_model: Any, levels: list[tuple[str, int]]) -> None:
    model, tokenizer = make_model()
    model.resize_token_embeddings(100, mean_resizing=False)
    with pytest.raises(TrainingError, match="has only 100 rows"):
        extend_vocabulary(model, tokenizer, levels)
