"""Supervised fine-tuning: examples, loop, early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from training.finetuning.config import FinetuningConfig
from training.finetuning.validation import ValidationProbe
from training.learning.batches import Batches, derive_seed
from training.learning.best_keeper import BestKeeper
from training.learning.dropout import dropout
from training.learning.examples import Examples
from training.learning.loop import Loop, LoopSettings
from training.learning.objective import NextTokenLoss
from training.learning.precision import choose_attention
from training.learning.schedule import CosineSchedule


def finetune(
    model: nn.Module,
    examples: Examples,
    pairs: Examples | None,
    validation: ValidationProbe,
    config: FinetuningConfig,
    *,
    levels: Sequence[tuple[int, int]],
    seed: int,
    directory: Path,
    contexts: Examples | None = None,
    context_share: float = 0.0,
) -> dict[str, Any]:
    """Train in place and leave the best weights in the model; resumes from `directory`.

    Args:
        model: grounded Hugging Face causal LM.
        examples: histories.
        pairs: alignment pairs, mixed in if the recipe gives them a share.
        validation: what chooses the best weights.
        config: how to train.
        levels: (first_token_id, codebook_size) of every level.
        seed: the run's seed.
        directory: where checkpoint.st and best.st are kept.
        contexts: histories with a free text before them.
        context_share: share of every batch drawn from them.

    Returns:
        The watcher's notes (evaluations, best step) and "steps", "steps_per_epoch".
    """
    # Pairs and contexts come on top, so that every arm sees the same histories in the same steps.
    sources = [(examples, config.batch_size)]
    for extra, share in ((pairs, config.alignment_share or 0.0), (contexts, context_share)):
        if extra is not None:
            sources.append((extra, round(share / (1 - share) * config.batch_size)))
    steps_per_epoch = len(examples) / config.batch_size
    steps = max(1, round(config.epochs * steps_per_epoch))
    settings = _settings(config, steps, derive_seed(seed, "finetuning", "loop"))
    objective = NextTokenLoss(model, label_smoothing=config.label_smoothing, levels=levels)
    watcher = BestKeeper(
        model,
        lambda: validation.measure(model, loop.autocast()),
        moments=moments(steps, num=round(config.epochs / config.evaluate_every_epochs)),
        steps_per_epoch=steps_per_epoch,
        patience=config.patience,
        best_file=directory / "best.st",
    )
    loop = Loop(
        objective,
        {name: value for name, value in model.named_parameters() if value.requires_grad},
        Batches(sources, seed=derive_seed(seed, "finetuning"), max_tokens=config.micro_batch_tokens),
        settings,
        checkpoint=directory / "checkpoint.st",
        watcher=watcher,
    )
    choose_attention(model, config.precision)
    model.train()
    with dropout(
        model,
        embedding=config.embedding_dropout,
        residual=config.residual_dropout,
        attention=config.attention_dropout,
    ):
        steps_done = loop.run()
    model.eval()
    watcher.restore_best()
    return watcher.state | {"steps": steps_done, "steps_per_epoch": steps_per_epoch}


def moments(steps: int, num: int) -> list[int]:
    """Evenly spread steps to validate at, the last step among them; at least one, at most `steps`."""
    num = min(max(1, num), steps)
    return [round(place * steps / num) for place in range(1, num + 1)]


def _settings(config: FinetuningConfig, steps: int, seed: int) -> LoopSettings:
    schedule = CosineSchedule(
        config.learning_rate,
        config.final_learning_rate,
        warmup_steps=round(config.warmup_share * steps),
        steps=steps,
    )
    return LoopSettings(
        schedule=schedule,
        seed=seed,
        betas=config.betas,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        precision=config.precision,
        average_decay=config.average_decay,
        title="fine-tuning",
    )
