from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from training.errors import TrainingError
from training.learning.batches import Batches
from training.learning.checkpoint import load_checkpoint, save_checkpoint
from training.learning.dropout import dropout
from training.learning.examples import Examples
from training.learning.loop import Loop, LoopSettings, LossLog
from training.learning.objective import NextTokenLoss
from training.learning.schedule import CosineSchedule

STEPS = 9


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


class KillAt(LossLog):
    def __init__(self, step: int) -> None:
        super().__init__(STEPS)
        self._kill_at = step

    def after_step(self, loop: Loop, step: int, loss: float) -> bool:
        if step == self._kill_at:
            raise Killed
        return super().after_step(loop, step, loss)


def train(model: Qwen3ForCausalLM, checkpoint: Path, watcher: LossLog | None = None, **changes: Any) -> Loop:
    generator = np.random.default_rng(0)
    examples = Examples.of_answers(
        ([1], generator.integers(2, 40, size=generator.integers(1, 9)).tolist()) for _ in range(20)
    )
    settings = {
        "schedule": CosineSchedule(1e-2, 1e-3, warmup_steps=2, steps=STEPS),
        "seed": 3,
        "weight_decay": 0.1,
        "average_decay": 0.9,
        "precision": "fp32",
        "checkpoint_seconds": 0.0,
    }
    loop = Loop(
        NextTokenLoss(model),
        dict(model.named_parameters()),
        Batches([(examples, 6)], seed=1, max_tokens=16),
        LoopSettings(**(settings | changes)),
        checkpoint=checkpoint,
        watcher=watcher,
    )
    model.train()
    with dropout(model, embedding=0.2, residual=0.2, attention=0.2):
        loop.run()
    return loop


def copy_of(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    other = Qwen3ForCausalLM(model.config)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("kill_at", [1, 2, 5, 9])
def test_killed_and_resumed_ends_with_the_same_weights(tiny_model: Any, tmp_path: Path, kill_at: int) -> None:
    killed, fresh = copy_of(tiny_model), copy_of(tiny_model)  # a new process loads the model anew
    whole = train(tiny_model, tmp_path / "whole.st")
    with pytest.raises(Killed):
        train(killed, tmp_path / "killed.st", KillAt(kill_at))
    resumed = train(fresh, tmp_path / "killed.st")
    for (name, one), other in zip(tiny_model.named_parameters(), fresh.parameters(), strict=True):
        assert one.equal(other), name
    assert whole.state == resumed.state
    with whole.best_weights(), resumed.best_weights():
        for one, other in zip(tiny_model.parameters(), fresh.parameters(), strict=True):
            assert one.equal(other)


def test_a_finished_run_is_not_repeated(tiny_model: Any, tmp_path: Path) -> None:
    train(tiny_model, tmp_path / "run.st")
    before = [parameter.clone() for parameter in tiny_model.parameters()]
    train(tiny_model, tmp_path / "run.st", KillAt(STEPS))
    assert all(one.equal(other) for one, other in zip(before, tiny_model.parameters(), strict=True))


def test_a_stopped_run_stays_stopped(tiny_model: Any, tmp_path: Path) -> None:
    class StopAt(LossLog):
        def after_step(self, loop: Loop, step: int, loss: float) -> bool:
            super().after_step(loop, step, loss)
            return step == 4

    for _ in range(2):
        assert train(tiny_model, tmp_path / "run.st", StopAt(STEPS)).run() == 4


def test_training_lowers_the_loss(tiny_model: Any, tmp_path: Path) -> None:
    losses = train(tiny_model, tmp_path / "run.st").state["losses"]
    assert losses[-1][1] < losses[0][1]


def test_gradients_are_those_of_one_big_batch(tiny_model: Any, tmp_path: Path) -> None:
    """Micro-batches must weigh every label alike, however labels fall among them."""
    other = copy_of(tiny_model)
    for model, limit in ((tiny_model, 8), (other, 10_000)):
        examples = Examples.of_answers([([1], [5, 6, 7, 8, 9, 10]), ([1], [11]), ([1, 2, 3], [12])])
        loop = Loop(
            NextTokenLoss(model),
            dict(model.named_parameters()),
            Batches([(examples, 3)], seed=1, max_tokens=limit),
            LoopSettings(schedule=CosineSchedule(1e-3, 1e-3, 0, 1), seed=0, precision="fp32"),
            checkpoint=tmp_path / f"{limit}.st",
        )
        loop.run()
    first = load_checkpoint(tmp_path / "8.st")
    second = load_checkpoint(tmp_path / "10000.st")
    assert first is not None
    assert second is not None
    for name in first[0]:
        if name.startswith("exp_avg/"):
            torch.testing.assert_close(first[0][name], second[0][name], rtol=1e-4, atol=1e-6)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.st"
    save_checkpoint(path, {"x": torch.ones(3)}, {"step": 1})
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TrainingError, match="checkpoint.st is damaged"):
        load_checkpoint(path)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none.st") is None


def test_bf16_trains_too(tiny_model: Any, tmp_path: Path) -> None:
    losses = train(tiny_model, tmp_path / "run.st", precision="bf16").state["losses"]
    assert losses[-1][1] < losses[0][1]
    assert all(parameter.dtype == torch.float32 for parameter in tiny_model.parameters())
