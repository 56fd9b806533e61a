"""Recipe sections `[grounding]` and `[prompt]`: how the new tokens start, and how a history is written.

Fields marked [D] are choices the paper (arXiv:2604.02324) leaves open.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from training.learning.config import Precision

ArmName = Literal[
    "mean",
    "gaussian",
    "lc-rec",
    "gti-a",
    "gti",
    "compute-control",
    "description",
    "centroid",
    "centroid-a",
    "shuffled",
]


class StageAConfig(BaseModel):
    """Stage A: only the new rows are trained, on pairs of text and semantic ID."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=600, ge=1, description="[D] optimizer steps (paper: 8,000)")
    batch_size: int = Field(default=128, ge=1, description="pairs per step, as in the paper")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="as in the paper")
    final_learning_rate: float = Field(default=1e-4, ge=0, le=1, description="[D] end of the cosine")
    warmup_share: float = Field(default=0.1, ge=0, lt=1, description="[D] part of the steps")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="[D] of AdamW")
    precision: Precision = Field(
        default="auto", description="[D] compute precision; the rows themselves stay float32"
    )


class StageBConfig(BaseModel):
    """Stage B: all parameters are trained on the same pairs, in the arms that have it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=600, ge=1, description="[D] optimizer steps (paper: 8,000)")
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="[D]")
    final_learning_rate: float = Field(default=2e-5, ge=0, le=1, description="[D] end of the cosine")
    warmup_share: float = Field(default=0.1, ge=0, lt=1, description="[D] part of the steps")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="[D] of AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="[D]")
    precision: Precision = Field(default="auto", description="[D] compute precision")


class GroundingConfig(BaseModel):
    """How the rows of the SID tokens come about."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    init: ArmName = Field(
        default="gti-a",
        description="the arm: how the new rows start and what is trained before fine-tuning; "
        "training/grounding/initialize.py says what each one does",
    )
    gaussian_scale: float = Field(
        default=1.0, ge=0, le=10, description="[D] gaussian: standard deviations, against the text rows'"
    )
    description_text: Literal["title", "description", "both"] = Field(
        default="both", description="[D] description, and centroid's regression: which text of an item counts"
    )
    centroid_map: Literal["projection", "regression"] = Field(
        default="projection",
        description="[D] centroid: projection keeps the centroids' angles and turns them at random; "
        "regression is fitted from items' vectors to the mean row of their text's tokens",
    )
    centroid_scale: float = Field(
        default=1.0, gt=0, le=10, description="[D] centroid: distance from the mean, against the text rows'"
    )
    centroid_ridge: float = Field(
        default=1e-2, gt=0, description="[D] centroid's regression: penalty, in mean variances of the vectors"
    )
    max_title_tokens: int = Field(default=48, ge=1, description="[D] longer titles are cut in the pairs")
    max_description_tokens: int = Field(default=96, ge=1, description="[D] longer descriptions are cut")
    stage_a: StageAConfig = StageAConfig()
    stage_b: StageBConfig = StageBConfig()


class PromptConfig(BaseModel):
    """How a history becomes a prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    style: Literal["auto", "sequence", "chat"] = Field(
        default="auto",
        description="sequence: the semantic IDs one after another, the answer continues them; "
        "chat: instruction and history in the user's turn; auto: chat if the model has a chat template",
    )
    history_limit: int | None = Field(
        default=None, ge=1, le=1000, description="newest items read; default: items.history_limit"
    )
    instruction: str = Field(
        default="A customer used the items below, oldest first. Write the semantic ID of the item "
        "that comes next.",
        min_length=1,
        description="chat style only",
    )
    separator: str = Field(default=", ", description="between two items; chat style only")
    context_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of every fine-tuning batch whose prompts carry a short text drawn from the "
        "target's words before the history, e.g. 0.25; the service then takes `context`. 0 = none",
    )
    context_before: str = Field(default="Looking for: ", description="stands before that text")
    context_after: str = Field(default="\n", description="stands after it")
    max_context_tokens: int = Field(default=24, ge=1, le=1000, description="longer texts are cut")
