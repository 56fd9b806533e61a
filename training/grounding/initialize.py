"""How the rows of the SID tokens start: one registry of row makers, one of arms.

An arm is a row maker plus what is trained afterwards. A new arm is an entry in `ARMS` (and its name
in `GroundingConfig.init`); a new way to fill rows is an entry in `ROW_MAKERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from training.grounding.vocabulary import Vocabulary, token_matrices


@dataclass(frozen=True)
class Arm:
    """One way to ground.

    Attributes:
        rows: entry of `ROW_MAKERS` that fills the new rows.
        has_stage_a: only the new rows are then trained.
        has_stage_b: everything is then trained, if the recipe gives stage B steps.
    """

    rows: str
    has_stage_a: bool = False
    has_stage_b: bool = False


@torch.no_grad()
def mean_rows(matrix: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """Every new row is the exact mean of the real text rows.

    Padding rows are left out, and the sum is taken in float64. (transformers' own resize draws from
    a normal distribution around a mean that includes padding.)

    Args:
        matrix: Shape: (V, D).
        vocabulary: says which rows are text.

    Returns:
        Shape: (R, D), float32.
    """
    text_ids = torch.from_numpy(vocabulary.text_token_ids).to(matrix.device)
    mean = matrix[text_ids].double().mean(0)
    return mean.float().expand(vocabulary.num_new, -1).clone()


RowMaker = Callable[[torch.Tensor, Vocabulary], torch.Tensor]
ROW_MAKERS: dict[str, RowMaker] = {"mean": mean_rows}
ARMS: dict[str, Arm] = {
    "mean": Arm("mean"),
    "gti": Arm("mean", has_stage_a=True, has_stage_b=True),
}


def initial_rows(model: nn.Module, vocabulary: Vocabulary, arm: Arm) -> dict[str, torch.Tensor]:
    """The arm's starting rows for every token matrix. Shape of each: (R, D)."""
    make = ROW_MAKERS[arm.rows]
    return {name: make(matrix, vocabulary) for name, matrix in token_matrices(model).items()}
