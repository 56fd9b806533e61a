"""Learning rate: linear warm-up, then half a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class RateConfig(Protocol):
    """What a recipe says of learning rates."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def final_learning_rate(self) -> float: ...
    @property
    def warmup_share(self) -> float: ...


@dataclass(frozen=True)
class CosineSchedule:
    """Learning rate of every step.

    Attributes:
        peak: highest rate, reached after the warm-up.
        final: rate of the last step.
        warmup_steps: steps of linear rise; 0 starts at the peak.
        steps: steps in all.
    """

    peak: float
    final: float
    warmup_steps: int
    steps: int

    @classmethod
    def of(cls, config: RateConfig, steps: int) -> CosineSchedule:
        """A recipe's rates over a run of `steps` steps."""
        warmup_steps = round(config.warmup_share * steps)
        return cls(config.learning_rate, config.final_learning_rate, warmup_steps, steps)

    def rate(self, step: int) -> float:
        """Rate of step 0..steps-1."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        after = (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, after)))
