"""The arms: how the rows of the SID tokens start, and what is trained before fine-tuning.

An arm is a row maker plus what is trained afterwards. A new arm is an entry in `ARMS` (and its name
in `grounding.config.ArmName`); a new way to fill rows is an entry in `rows.ROW_MAKERS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from training.grounding.config import GroundingConfig, StageBConfig
from training.grounding.rows import ROW_MAKERS, Given
from training.grounding.vocabulary import token_matrices


@dataclass(frozen=True)
class Arm:
    """One way to ground.

    Attributes:
        rows: entry of `ROW_MAKERS` that fills the new rows.
        has_stage_a: only the new rows are then trained, on pairs of text and semantic ID.
        has_stage_b: everything is then trained on the same pairs.
        is_control_for_compute: stage B alone, on as many pairs as A and B read together.
        is_shuffled: at the end the rows are permuted within each level.
        alignment_share: share of the pairs in fine-tuning's batches, where the recipe says nothing.
    """

    rows: str
    has_stage_a: bool = False
    has_stage_b: bool = False
    is_control_for_compute: bool = False
    is_shuffled: bool = False
    alignment_share: float = 0.0

    def stage_b(self, config: GroundingConfig) -> StageBConfig:
        """Stage B as this arm runs it."""
        if not self.is_control_for_compute:
            return config.stage_b
        a, b = config.stage_a, config.stage_b
        pairs = a.steps * a.batch_size + b.steps * b.batch_size
        return b.model_copy(update={"steps": math.ceil(pairs / b.batch_size)})


# The numbers are those of the table in Results (training/EXPERIMENTS.md).
ARMS: dict[str, Arm] = {
    "mean": Arm("mean"),  # 1
    "gaussian": Arm("gaussian"),  # 2
    "lc-rec": Arm("mean", alignment_share=0.25),  # 3, arXiv:2311.09049
    "gti-a": Arm("mean", has_stage_a=True),  # 4, the hypothesis of arXiv:2604.02324 in its pure form
    "gti": Arm("mean", has_stage_a=True, has_stage_b=True),  # 5, what that paper calls GTI
    "compute-control": Arm("mean", has_stage_b=True, is_control_for_compute=True),  # 6
    "description": Arm("description"),  # 7
    "centroid": Arm("centroid"),  # 8, after arXiv:2608.07816
    "centroid-a": Arm("centroid", has_stage_a=True),  # 9
    "shuffled": Arm("mean", has_stage_a=True, has_stage_b=True, is_shuffled=True),  # 10
}


def initial_rows(model: nn.Module, arm: Arm, given: Given) -> dict[str, torch.Tensor]:
    """The arm's starting rows for every token matrix. Shape of each: (R, D).

    Raises:
        ArmUnavailable: the arm cannot run on this data or base model; the sentence says why.
    """
    make = ROW_MAKERS[arm.rows]
    return {name: make(matrix, given) for name, matrix in token_matrices(model).items()}
