"""Stage B: all parameters learn the same pairs. The paper's "GTI" is A and B together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from training.grounding.config import StageBConfig
from training.learning.batches import Batches, derive_seed
from training.learning.examples import Examples
from training.learning.loop import Loop, LoopSettings
from training.learning.objective import NextTokenLoss
from training.learning.precision import choose_attention
from training.learning.schedule import CosineSchedule


def run_stage_b(
    model: nn.Module, pairs: Examples, config: StageBConfig, *, seed: int, checkpoint: Path
) -> list[Any]:
    """Train everything in place; resumes from `checkpoint`.

    Returns:
        [[step, mean training loss], ...].
    """
    settings = LoopSettings(
        schedule=CosineSchedule.of(config, config.steps),
        seed=derive_seed(seed, "grounding", "stage_b"),
        betas=config.betas,
        weight_decay=config.weight_decay,
        precision=config.precision,
        title="grounding B",
    )
    choose_attention(model, config.precision)
    model.train()
    batches = Batches([(pairs, config.batch_size)], seed=derive_seed(seed, "grounding", "order b"))
    loop = Loop(
        NextTokenLoss(model), dict(model.named_parameters()), batches, settings, checkpoint=checkpoint
    )
    loop.run()
    model.eval()
    return loop.state["losses"]
