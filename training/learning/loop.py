"""The training loop: deterministic for a seed, and killed and resumed without a trace.

Everything random at step s is derived from (seed, s), so parameters, optimizer moments, the weight
average and the step number are the whole state. Checkpoints are written by the clock (a few seconds
in a hundred at most), which changes nothing in the result.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from training.learning.batches import derive_seed
from training.learning.checkpoint import load_checkpoint, save_checkpoint
from training.learning.config import Precision
from training.learning.precision import autocast
from training.learning.ranks import Ranks
from training.learning.schedule import CosineSchedule
from training.learning.sharding import as_shared, is_shared, whole, whole_weights

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How to train.

    Attributes:
        schedule: learning rates; its `steps` is the length of the run.
        seed: everything random comes from it.
        betas, weight_decay: of AdamW; vectors (norms, biases) are never decayed.
        max_grad_norm: gradients are scaled down to this norm; 0 = never.
        precision: "bf16" computes matrix products in bfloat16 and keeps weights in float32;
            "auto" does so where the machine has instructions for it.
        average_decay: decay of the exponential average of the weights; 0 = no average.
        checkpoint_seconds: about how often the state is saved.
        title: beside the progress bar.
    """

    schedule: CosineSchedule
    seed: int
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Precision = "auto"
    average_decay: float = 0.0
    checkpoint_seconds: float = 30.0
    title: str = "train"


class Part(Protocol):
    """What is computed at once; `MicroBatch` is one."""

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What the objective is called with."""
        ...

    @property
    def num_labels(self) -> int:
        """Terms in the objective's sum."""
        ...

    def to(self, device: torch.device) -> Part: ...


class BatchSource(Protocol):
    """Gives the parts of a step, whose gradients add up."""

    def at(self, step: int) -> Sequence[Part]: ...


class Watcher(Protocol):
    """Looks at the run after every step; may evaluate, and may stop it."""

    state: dict[str, Any]  # JSON-able; saved in every checkpoint and put back on resume

    def after_step(self, loop: Loop, step: int, loss: float) -> bool:
        """`step` steps are done, the last one's mean loss was `loss`. True stops the run."""
        ...


class LossLog:
    """The plain watcher: notes the mean training loss about fifty times in a run.

    Args:
        steps: length of the run.
        stop_at: end the run after so many steps, on the schedule of the whole one; default: never.
    """

    def __init__(self, steps: int, *, stop_at: int | None = None) -> None:
        self._every = max(1, steps // 50)
        self._stop_at = stop_at
        self.state: dict[str, Any] = {"losses": [], "sum": 0.0, "count": 0}

    def after_step(self, loop: Loop, step: int, loss: float) -> bool:
        """Note the loss; stops where it was told to, if anywhere."""
        self.state["sum"] += loss
        self.state["count"] += 1
        if step % self._every == 0:
            self.state["losses"].append([step, round(self.state["sum"] / self.state["count"], 5)])
            self.state["sum"], self.state["count"] = 0.0, 0
        return self._stop_at is not None and step >= self._stop_at


class Loop:
    """One run over one objective.

    Args:
        objective: called with a part's inputs, gives the sum of its labels' losses.
        parameters: what is trained, by name; float32.
        batches: the data.
        settings: how.
        checkpoint: file of the state. If it exists the run goes on from it.
        watcher: looks on.
        ranks: the processes that train together; default: all that torchrun started.

    Attributes:
        device: where the parameters are.
    """

    def __init__(
        self,
        objective: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        batches: BatchSource,
        settings: LoopSettings,
        *,
        checkpoint: Path,
        watcher: Watcher | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks.current()
        self._objective = objective
        self._parameters = dict(parameters)
        self._batches = batches
        self._settings = settings
        self._checkpoint = checkpoint
        self._watcher: Watcher = watcher or LossLog(settings.schedule.steps)
        first = next(iter(self._parameters.values()))
        self.device, self._is_shared = first.device, is_shared(first)
        self._optimizer = torch.optim.AdamW(self._groups(), lr=0.0, betas=settings.betas, fused=True)
        self._average = (
            {name: value.detach().clone() for name, value in self._parameters.items()}
            if settings.average_decay
            else {}
        )
        self._step = 0
        self._is_stopped = False
        self._restore()

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step

    @property
    def state(self) -> dict[str, Any]:
        """The watcher's notes."""
        return self._watcher.state

    def run(self) -> int:
        """Train to the end; returns the number of steps done. A finished run returns at once."""
        steps = self._settings.schedule.steps
        saved_at, save_seconds = time.monotonic(), 0.0
        with tqdm(total=steps, **self._bar()) as bar:
            while self._step < steps and not self._is_stopped:
                loss = self._train_step(self._step)
                self._step += 1
                stops = self._watcher.after_step(self, self._step, loss)
                # A save may take at most a twentieth of the time, however large the model.
                pause = max(self._settings.checkpoint_seconds, 20 * save_seconds)
                saves = stops or self._step == steps or time.monotonic() - saved_at >= pause
                self._is_stopped, saves = self._ranks.agree([stops, saves])
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if saves:
                    began = time.monotonic()
                    self._save()
                    saved_at = time.monotonic()
                    save_seconds = saved_at - began
        self._ranks.check_same(list(self._parameters.values()))
        return self._step

    def _train_step(self, step: int) -> float:
        """One optimizer step; returns the mean loss per label."""
        settings = self._settings
        for group in self._optimizer.param_groups:
            group["lr"] = settings.schedule.rate(step)
        torch.manual_seed(derive_seed(settings.seed, "dropout", step, *self._ranks.seed_names))
        parts = self._batches.at(step)
        num_labels = max(1, sum(part.num_labels for part in parts))
        total = 0.0
        for part in parts:
            placed = part.to(self.device).inputs
            inputs, share = [values[self._ranks.rows] for values in placed], 1.0
            if not len(inputs[0]):  # fewer rows than processes
                if not self._is_shared:
                    continue
                inputs, share = (
                    [values[:1] for values in placed],
                    0.0,
                )  # the others wait for its part of the model
            with self.autocast():
                loss = share * self._objective(*inputs)
            (loss / num_labels).backward()
            total += float(loss.detach())
        total = self._ranks.add_up(list(self._parameters.values()), total)
        if settings.max_grad_norm:
            nn.utils.clip_grad_norm_(self._parameters.values(), settings.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._update_average(step)
        return total / num_labels

    def autocast(self) -> torch.autocast:
        """The run's compute precision as a context."""
        return autocast(self._settings.precision, self.device)

    @torch.no_grad()
    def keep_average(self) -> None:
        """Put the weight average, if there is one, into the parameters for good."""
        if self._average:
            self._put(self._average)

    @contextlib.contextmanager
    def best_weights(self) -> Iterator[None]:
        """Inside the context the parameters hold the weight average, if there is one, and are whole."""
        kept = {name: value.detach().clone() for name, value in self._parameters.items() if self._average}
        self.keep_average()
        try:
            with whole_weights(self._objective):
                yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        if self._average:
            # Early on the average follows quickly: random weights must not linger in it.
            decay = min(self._settings.average_decay, (1 + step) / (10 + step))
            averages = [self._average[name] for name in self._parameters]
            torch._foreach_lerp_(averages, list(self._parameters.values()), 1 - decay)

    def _groups(self) -> list[dict[str, Any]]:
        parameters = self._parameters.values()
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self._settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def _save(self) -> None:
        """Rank 0 writes; the others give their parts of what is shared out."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"parameter/{name}"] = parameter
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
            if self._average:
                tensors[f"average/{name}"] = self._average[name]
        if self._is_shared:
            tensors = self._gathered(tensors)
        if self._ranks.number > 0:
            return
        about = {"step": self._step, "is_stopped": self._is_stopped, "watcher": self._watcher.state}
        save_checkpoint(self._checkpoint, tensors, about)

    @torch.no_grad()
    def _gathered(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The whole tensors on rank 0, one after the other; nothing is kept elsewhere."""
        found = {}
        for name, tensor in tensors.items():
            value = whole(tensor)
            if self._ranks.number == 0:
                found[name] = value.cpu()
        return found

    @torch.no_grad()
    def _restore(self) -> None:
        """Go on from the checkpoint, if there is one; rank 0 reads it and tells the others."""
        tensors, about = (self._ranks.number == 0 and load_checkpoint(self._checkpoint)) or ({}, None)
        about = self._ranks.agree(about)
        self._ranks.share([value.data for value in self._parameters.values() if not is_shared(value)])
        if about is None:
            return
        names = self._ranks.agree(list(tensors))
        tensors = {name: tensors.get(name, self._empty(name)) for name in names}
        self._ranks.share(list(tensors.values()))
        self._step, self._is_stopped = about["step"], about["is_stopped"]
        self._watcher.state = about["watcher"]
        for name, parameter in self._parameters.items():
            parameter.copy_(as_shared(tensors[f"parameter/{name}"], parameter))
            moments = {key: tensors[f"{key}/{name}"] for key in _MOMENTS if f"{key}/{name}" in tensors}
            if moments:  # none for a parameter that has had no gradient yet
                self._optimizer.state[parameter] = {
                    key: as_shared(value, parameter) if value.ndim else value.to(self.device)
                    for key, value in moments.items()
                }
            if self._average:
                self._average[name].copy_(as_shared(tensors[f"average/{name}"], parameter))

    def _empty(self, name: str) -> torch.Tensor:
        """Room for a tensor of the checkpoint, by its name there."""
        kind, _, parameter = name.partition("/")
        like = self._parameters[parameter]
        return torch.zeros(() if kind == "step" else like.shape, dtype=torch.float32)

    def _bar(self) -> dict[str, Any]:
        return {
            "initial": self._step,
            "desc": self._settings.title,
            "mininterval": 1.0,
            "disable": self._ranks.number > 0,
        }
