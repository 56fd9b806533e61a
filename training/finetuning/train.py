"""Supervised fine-tuning: what is learned, the loop, early stopping; and the same once more without it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from training.errors import TrainingError
from training.finetuning.config import FinetuningConfig
from training.finetuning.validation import ValidationProbe
from training.learning.batches import Batches, derive_seed
from training.learning.best_keeper import BestKeeper
from training.learning.dropout import dropout
from training.learning.examples import Examples
from training.learning.loop import Loop, LoopSettings, LossLog, Watcher
from training.learning.objective import NextTokenLoss
from training.learning.precision import choose_attention
from training.learning.ranks import Ranks
from training.learning.schedule import CosineSchedule
from training.learning.sharding import copy_whole, shard


@dataclass(frozen=True)
class Material:
    """What is learned.

    Attributes:
        examples: histories.
        pairs: alignment pairs, where the recipe gives them a share.
        contexts: histories with a free text before them.
        context_share: share of every batch drawn from those.
    """

    examples: Examples
    pairs: Examples | None = None
    contexts: Examples | None = None
    context_share: float = 0.0

    def sources(self, config: FinetuningConfig) -> list[tuple[Examples, int]]:
        """Examples, and how many of them every batch holds.

        Pairs and contexts come on top, so that every arm sees the same histories in the same steps.
        """
        sources = [(self.examples, config.batch_size)]
        for extra, share in (
            (self.pairs, config.alignment_share or 0.0),
            (self.contexts, self.context_share),
        ):
            if extra is not None:
                sources.append((extra, round(share / (1 - share) * config.batch_size)))
        return sources


def finetune(
    model: nn.Module,
    material: Material,
    validation: ValidationProbe,
    config: FinetuningConfig,
    *,
    levels: Sequence[tuple[int, int]],
    seed: int,
    directory: Path,
) -> dict[str, Any]:
    """Train in place and leave the best weights in the model; resumes from `directory`.

    Args:
        model: grounded Hugging Face causal LM.
        material: what is learned.
        validation: what chooses the best weights.
        config: how to train.
        levels: (first_token_id, codebook_size) of every level.
        seed: the run's seed.
        directory: where checkpoint.st and best.st are kept.

    Returns:
        The watcher's notes (evaluations, best step) and "steps", "steps_per_epoch".
    """
    steps_per_epoch = len(material.examples) / config.batch_size
    steps = _num_steps(material, config)
    trained = _what_is_trained(model, config)
    watcher = BestKeeper(
        trained,
        lambda: validation.measure(trained, loop.autocast()),
        moments=moments(steps, num=round(config.epochs / config.evaluate_every_epochs)),
        steps_per_epoch=steps_per_epoch,
        patience=config.patience,
        best_file=directory / "best.st",
    )
    loop = _loop(trained, material, config, levels=levels, seed=seed, directory=directory, watcher=watcher)
    steps_done = _train(trained, loop, config)
    watcher.restore_best(model.to(loop.device))
    return watcher.state | {"steps": steps_done, "steps_per_epoch": steps_per_epoch}


def retrain(
    model: nn.Module,
    material: Material,
    config: FinetuningConfig,
    *,
    epochs: float,
    levels: Sequence[tuple[int, int]],
    seed: int,
    directory: Path,
) -> dict[str, Any]:
    """Train as `finetune` did, for passes that were chosen before; nothing is validated.

    Args:
        model, material, config, levels, seed, directory: see `finetune`.
        epochs: passes after which to stop, on the schedule of `config.epochs`.

    Returns:
        "losses" ([step, mean training loss]), "steps" and "steps_per_epoch".
    """
    steps_per_epoch = len(material.examples) / config.batch_size
    steps = _num_steps(material, config)
    stop_at = max(1, round(epochs * steps_per_epoch))
    watcher = LossLog(steps, stop_at=stop_at)
    trained = _what_is_trained(model, config)
    loop = _loop(trained, material, config, levels=levels, seed=seed, directory=directory, watcher=watcher)
    steps_done = _train(trained, loop, config)
    loop.keep_average()
    if trained is not model:
        copy_whole(trained, model.to(loop.device))
    return {"losses": watcher.state["losses"], "steps": steps_done, "steps_per_epoch": steps_per_epoch}


def moments(steps: int, num: int) -> list[int]:
    """Evenly spread steps to validate at, the last step among them; at least one, at most `steps`."""
    num = min(max(1, num), steps)
    return [round(place * steps / num) for place in range(1, num + 1)]


def _num_steps(material: Material, config: FinetuningConfig) -> int:
    return max(1, round(config.epochs * len(material.examples) / config.batch_size))


def _what_is_trained(model: nn.Module, config: FinetuningConfig) -> nn.Module:
    """The model, or a copy that can be shared out, for which it makes room on the GPU.

    Raises:
        TrainingError: there is one process to share it out over.
    """
    if config.sharding == "none":
        return model
    if Ranks.current().count == 1:
        raise TrainingError(
            "finetuning.sharding = 'full' needs several processes: start with torchrun, or set it to 'none'"
        )
    return copy.deepcopy(model.cpu())


def _loop(
    model: nn.Module,
    material: Material,
    config: FinetuningConfig,
    *,
    levels: Sequence[tuple[int, int]],
    seed: int,
    directory: Path,
    watcher: Watcher,
) -> Loop:
    sources = material.sources(config)
    is_shared = config.sharding == "full"
    objective = NextTokenLoss(
        model, label_smoothing=config.label_smoothing, levels=levels, is_packed=not is_shared
    )
    if is_shared:
        shard(objective, objective.model.model.layers)
    return Loop(
        objective,
        {name: value for name, value in model.named_parameters() if value.requires_grad},
        Batches(sources, seed=derive_seed(seed, "finetuning"), max_tokens=config.micro_batch_tokens),
        _settings(config, _num_steps(material, config), derive_seed(seed, "finetuning", "loop")),
        checkpoint=directory / "checkpoint.st",
        watcher=watcher,
    )


def _train(model: nn.Module, loop: Loop, config: FinetuningConfig) -> int:
    """Run the loop with dropout; returns the steps done."""
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
    return steps_done


def _settings(config: FinetuningConfig, steps: int, seed: int) -> LoopSettings:
    return LoopSettings(
        schedule=CosineSchedule.of(config, steps),
        seed=seed,
        betas=config.betas,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        precision=config.precision,
        average_decay=config.average_decay,
        title="fine-tuning",
    )
