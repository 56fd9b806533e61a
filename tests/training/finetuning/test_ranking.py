"""Ranking fine-tuning: candidates are the model's own beams, and the result is kept only if it helps."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from service.engine.torch_engine import TorchDecoder
from training.errors import TrainingError
from training.evaluation.validation import Validation
from training.finetuning.config import RankingConfig
from training.finetuning.ranking import (
    RankingLoss,
    collect_candidates,
    part_of,
    rank_finetune,
    reference_logprobs,
)

CONFIG = RankingConfig(
    steps=60, rows=60, num_negatives=5, batch_rows=12, learning_rate=3e-3, precision="fp32", anchor=1.0
)


@pytest.fixture
def fresh_model(world_model: Any) -> Any:
    """The world's model, to be changed."""
    return copy.deepcopy(world_model)


def validation_of(world: Any) -> Validation:
    return Validation(world.dataset, world.codes, world.levels, world.prompt, max_rows=None)


def candidates_of(world: Any, model: Any, config: RankingConfig = CONFIG) -> Any:
    order = validation_of(world).order
    decoder = TorchDecoder(model, order.trie, world.levels)
    return collect_candidates(decoder, world.dataset, order, world.levels, world.prompt, config)


def test_candidates_are_the_target_and_the_beams_without_it(world: Any, world_model: Any) -> None:
    found = candidates_of(world, world_model, CONFIG.model_copy(update={"rows": 10_000}))
    first = np.array([level.first_token_id for level in world.levels])
    targets = world.codes[world.dataset.train["target"].to_numpy()] + first
    assert (found.sids[:, 0] == targets).all() and found.sids.shape[1:] == (6, 3)
    for row, sids in enumerate(found.sids):
        assert len(np.unique(sids, axis=0)) == 6
        assert found.prompts[row] == world.prompt.token_ids(
            world.codes[world.dataset.train["history"][row].to_list()] + first
        )
    assert found.weights.mean(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (found.weights[:, 0] >= found.weights[:, -1]).any()


def test_the_loss_is_what_it_says(world: Any, world_model: Any) -> None:
    objective = RankingLoss(world_model, CONFIG, 3)
    found = candidates_of(world, world_model)
    reference = reference_logprobs(objective, found, "fp32")
    expected, shifted = 0.0, reference - 0.3 * torch.arange(6)
    for row in range(4):
        logprobs = []
        for sid in found.sids[row]:
            ids = torch.tensor([[*found.prompts[row], *sid]])
            with torch.no_grad():
                scores = world_model(ids).logits[0].float().log_softmax(-1)
            logprobs.append(sum(float(scores[len(ids[0]) - 4 + n, token]) for n, token in enumerate(sid)))
        assert reference[row].numpy() == pytest.approx(logprobs, abs=1e-4)
        gained = CONFIG.beta * (np.array(logprobs) - shifted[row].numpy())
        against = np.log((found.weights[row] * np.exp(gained[1:] - gained[0])).sum())
        expected += np.log1p(np.exp(against)) - CONFIG.anchor * logprobs[0]
    inputs = part_of(found, shifted, np.arange(4)).inputs
    assert float(objective(*inputs).detach()) == pytest.approx(expected, rel=1e-4)


def run(world: Any, model: Any, directory: Path, **changes: Any) -> dict[str, Any]:
    config = CONFIG.model_copy(update=changes)
    return rank_finetune(
        model,
        world.dataset,
        validation_of(world),
        config,
        levels=world.levels,
        prompt=world.prompt,
        seed=0,
        directory=directory,
    )


def test_without_a_gain_the_weights_are_put_back(world: Any, fresh_model: Any, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in fresh_model.named_parameters()}
    # Histories of the world are random: what is learned of them cannot help.
    notes = run(world, fresh_model, tmp_path, learning_rate=1e-3, steps=5)
    assert notes["is_kept"] is False and notes["NDCG@10_difference"][0] <= 0
    assert all(value.equal(before[name]) for name, value in fresh_model.named_parameters())


def test_a_gain_beyond_noise_is_kept(world_maker: Any, fresh_model: Any, tmp_path: Path) -> None:
    world = world_maker(num_users=60)
    # Everybody's next item is the one after the last: there is something to learn.
    frames = {
        name: getattr(world.dataset, name).with_columns(
            target=((pl.col("history").list.last() + 1) % world.dataset.num_items).cast(pl.Int32)
        )
        for name in ("train", "valid")
    }
    learnable = replace(world, dataset=replace(world.dataset, **frames))
    notes = run(learnable, fresh_model, tmp_path, rows=500)
    assert notes["is_kept"] is True
    assert notes["after"]["NDCG@10"] > notes["before"]["NDCG@10"] + 0.05
    again = validation_of(learnable).metrics(fresh_model)["NDCG@10"]
    assert again == pytest.approx(notes["after"]["NDCG@10"], abs=1e-6)


def test_more_negatives_than_items_are_refused(world: Any, world_model: Any) -> None:
    with pytest.raises(TrainingError, match="lower finetuning.ranking.num_negatives"):
        candidates_of(world, world_model, CONFIG.model_copy(update={"num_negatives": 40}))
