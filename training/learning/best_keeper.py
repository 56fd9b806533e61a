"""Early stopping: validate now and then as the service would decode, keep the best weights."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from training.learning.checkpoint import load_checkpoint, save_checkpoint
from training.learning.loop import Loop
from training.learning.ranks import Ranks

Validate = Callable[[], dict[str, float]]


class BestKeeper:
    """Validates at given steps; stops after `patience` validations without gain.

    Args:
        model: what is trained.
        validate: gives numbers of the model as it is; "NDCG@10" chooses.
        moments: steps after which to validate, the last one among them.
        steps_per_epoch: for the notes.
        patience: validations without a better number before the run stops.
        best_file: where the best weights are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        validate: Validate,
        *,
        moments: Collection[int],
        steps_per_epoch: float,
        patience: int,
        best_file: Path,
    ) -> None:
        self._model = model
        self._validate = validate
        self._moments = frozenset(moments)
        self._steps_per_epoch = steps_per_epoch
        self._patience = patience
        self._best_file = best_file
        self.state: dict[str, Any] = {
            "evaluations": [],
            "best_NDCG@10": -1.0,
            "best_step": 0,
            "without_gain": 0,
            "loss_sum": 0.0,
            "loss_count": 0,
        }

    def after_step(self, loop: Loop, step: int, loss: float) -> bool:
        """Note the loss; validate when it is time. True stops the run."""
        state = self.state
        state["loss_sum"] += loss
        state["loss_count"] += 1
        if step not in self._moments:
            return False
        with loop.best_weights():
            self._model.eval()
            numbers = self._validate()
            self._model.train()
            if numbers["NDCG@10"] > state["best_NDCG@10"]:
                state |= {"best_NDCG@10": numbers["NDCG@10"], "best_step": step, "without_gain": 0}
                save_checkpoint(self._best_file, dict(self._model.named_parameters()), {"step": step})
            else:
                state["without_gain"] += 1
        note = {
            "step": step,
            "epoch": round(step / self._steps_per_epoch, 3),
            "train_loss": round(state["loss_sum"] / state["loss_count"], 5),
            **{name: round(value, 6) for name, value in numbers.items()},
        }
        state["evaluations"].append(note)
        state["loss_sum"], state["loss_count"] = 0.0, 0
        mark = " (best so far)" if state["best_step"] == step else ""
        also = f", valid loss {note['valid_loss']:.3f}" if "valid_loss" in note else ""
        tqdm.write(
            f"  epoch {note['epoch']:.1f}: train loss {note['train_loss']:.3f}{also}, "
            f"valid NDCG@10 {note['NDCG@10']:.4f}{mark}"
        )
        return state["without_gain"] >= self._patience

    @torch.no_grad()
    def restore_best(self, model: nn.Module) -> None:
        """Put the best weights into a model like the one that was trained."""
        loaded = load_checkpoint(self._best_file)
        if loaded is None and Ranks.current().number > 0:
            return  # resumed: rank 0 has the file, and what the others end with is thrown away
        assert loaded is not None, "a run validates at its last step at the latest"
        for name, parameter in model.named_parameters():
            parameter.copy_(loaded[0][name])
