from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from training.grounding.config import GroundingConfig, StageAConfig, StageBConfig
from training.grounding.initialize import ARMS, initial_rows
from training.grounding.pairs import pair_examples
from training.grounding.rows import Given
from training.grounding.stage_a import NewRowsLoss, digest_of_frozen, run_stage_a
from training.grounding.stage_b import run_stage_b
from training.grounding.vocabulary import Vocabulary, extend_vocabulary, read_new_rows, write_new_rows
from training.learning import loop as loop_module
from training.learning.batches import in_order
from training.learning.examples import Examples
from training.learning.objective import NextTokenLoss

CONFIG = StageAConfig(steps=10, batch_size=8, learning_rate=1e-2, precision="fp32")
Grounded = tuple[Any, Vocabulary, Examples]


@pytest.fixture
def start(make_model: Any, items: pl.DataFrame, codes: np.ndarray, levels: list[tuple[str, int]]) -> Any:
    def make(**form: Any) -> Grounded:
        model, tokenizer = make_model(**form)
        vocabulary = extend_vocabulary(model, tokenizer, levels)
        given = Given(vocabulary, items, codes, [None, None], tokenizer, GroundingConfig(), seed=0)
        write_new_rows(model, vocabulary, initial_rows(model, ARMS["gti"], given))
        sid_tokens = vocabulary.tokens_of(codes)
        return (
            model,
            vocabulary,
            pair_examples(items, sid_tokens, tokenizer, GroundingConfig(), is_chat=False),
        )

    return make


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_stage_a_moves_the_new_rows_and_nothing_else(
    start: Any, tmp_path: Path, is_tied: bool, architecture: str
) -> None:
    model, vocabulary, pairs = start(is_tied=is_tied, architecture=architecture, num_padding=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows_before = read_new_rows(model, vocabulary)
    losses = run_stage_a(model, vocabulary, pairs, CONFIG, seed=0, checkpoint=tmp_path / "a.st")
    matrices = {"model.embed_tokens.weight", "lm_head.weight"}
    for name, value in model.state_dict().items():
        end = vocabulary.first_new_id if name in matrices else None
        assert value[:end].equal(before[name][:end]), name
    for name, rows in read_new_rows(model, vocabulary).items():
        moved = (rows != rows_before[name]).any(1)
        unused = {"input": [7], "output": []}[
            name
        ]  # no item carries <b_4>; its logit is learned all the same
        if is_tied:
            unused = []
        assert (~moved).nonzero().flatten().tolist() == unused, name
    assert losses[-1][1] < losses[0][1]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_split_forward_equals_the_plain_one(start: Any, is_tied: bool) -> None:
    model, vocabulary, pairs = start(is_tied=is_tied)
    torch.manual_seed(1)
    rows = {name: torch.randn_like(rows) for name, rows in read_new_rows(model, vocabulary).items()}
    write_new_rows(model, vocabulary, rows)
    for micro in in_order(pairs, 400):
        plain = NextTokenLoss(model)(micro.ids, micro.is_label)
        split = NewRowsLoss(model, vocabulary)(micro.ids, micro.is_label)
        torch.testing.assert_close(split, plain, rtol=1e-5, atol=1e-4)


def test_no_gradient_of_the_full_matrix_exists(start: Any) -> None:
    model, vocabulary, pairs = start()
    objective = NewRowsLoss(model, vocabulary)
    micro = in_order(pairs, 400)[0]
    objective(micro.ids, micro.is_label).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    gradient = objective.rows["input"].grad
    assert gradient is not None
    assert gradient.shape == (8, 32)


@pytest.mark.parametrize("stage", ["a", "b"])
def test_killed_and_resumed_gives_the_same_weights(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def run(checkpoint: Path) -> Any:
        model, vocabulary, pairs = start()
        if stage == "a":
            run_stage_a(model, vocabulary, pairs, CONFIG, seed=0, checkpoint=checkpoint)
        else:
            config = StageBConfig(steps=10, batch_size=8, precision="fp32")
            run_stage_b(model, pairs, config, seed=0, checkpoint=checkpoint)
        return model

    take_step = loop_module.Loop._train_step

    def killed_at_six(self: Any, step: int) -> float:
        if step == 6:
            self._save()
            raise KeyboardInterrupt
        return take_step(self, step)

    expected = run(tmp_path / "whole.st")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop_module.Loop, "_train_step", killed_at_six)
        run(tmp_path / "killed.st")
    resumed = run(tmp_path / "killed.st")
    for (name, one), other in zip(expected.named_parameters(), resumed.parameters(), strict=True):
        assert one.equal(other), name


def test_stage_b_moves_everything(start: Any, tmp_path: Path) -> None:
    model, _, pairs = start()
    before = [parameter.clone() for parameter in model.parameters()]
    run_stage_b(model, pairs, StageBConfig(steps=4, batch_size=8), seed=0, checkpoint=tmp_path / "b.st")
    assert all(not one.equal(other) for one, other in zip(before, model.parameters(), strict=True))


def test_drift_of_a_frozen_row_is_noticed(start: Any) -> None:
    model, vocabulary, _ = start()
    digest = digest_of_frozen(model, vocabulary)
    with torch.no_grad():
        model.get_input_embeddings().weight[vocabulary.first_new_id] += 1
        assert digest_of_frozen(model, vocabulary) == digest
        model.get_input_embeddings().weight[vocabulary.first_new_id - 1, 0] += 1e-6
    assert digest_of_frozen(model, vocabulary) != digest
