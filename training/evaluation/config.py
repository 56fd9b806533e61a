"""Recipe section `[evaluation]`: how the finished model is measured on the test rows, once."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

CUTOFFS = (1, 3, 5, 10, 20, 50)


class PublishedRow(BaseModel):
    """A row of somebody's table, printed beside ours and marked as not measured by us."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="method, and where the figures stand")
    metrics: dict[str, float] = Field(description='e.g. {"HR@10" = 0.1321, "NDCG@10" = 0.0908}')


class SasRecConfig(BaseModel):
    """SASRec with full softmax cross-entropy, trained on the same rows as the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: tuple[int, ...] = Field(
        default=(),
        description="seeds to train with, e.g. [0, 1, 2]; the row in the tables is the first one's, the "
        "others' figures stand beside it; [] = no SASRec row, which a published table should not lack",
    )
    num_blocks: int = Field(default=2, ge=1, le=32)
    hidden_size: int = Field(default=128, ge=1, le=4096)
    num_heads: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.4, ge=0, lt=1)
    epochs: int = Field(default=40, ge=1, description="passes over the training sequences, at most")
    batch_size: int = Field(default=128, ge=1, description="windows of sequences per step")
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0)
    validation_rows: int = Field(default=2000, ge=1, description="validation rows read, at most")
    patience: int = Field(default=5, ge=1, description="epochs without a better NDCG@10 before stopping")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> SasRecConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not share a width of {self.hidden_size} evenly")
        return self


class EvaluationConfig(BaseModel):
    """What is measured beside what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beam_width: int = Field(default=50, ge=1, le=1000, description="beams kept; at least the largest cutoff")
    max_rows: int | None = Field(
        default=None, ge=1, description="measure only so many test rows, evenly spread; default: all"
    )
    max_beam_rows: int = Field(
        default=3200, ge=1, description="beams computed at once; lower it if memory runs out"
    )
    num_resamples: int = Field(
        default=1000, ge=100, le=100_000, description="bootstrap resamples behind every interval"
    )
    tune_itemcf: bool = Field(
        default=True,
        description="add a second ItemCF row whose settings are chosen on validation rows; takes seconds",
    )
    tuning_rows: int = Field(default=2000, ge=1, description="validation rows the tuning reads, at most")
    context_rows: int = Field(
        default=1000, ge=1, description="test rows on which free text is measured, where it was trained"
    )
    sasrec: SasRecConfig = SasRecConfig()
    published: tuple[PublishedRow, ...] = Field(default=(), description="rows to print beside ours")

    @model_validator(mode="after")
    def _beams_cover_the_cutoffs(self) -> EvaluationConfig:
        if self.beam_width < CUTOFFS[-1]:
            raise ValueError(
                f"beam_width = {self.beam_width} is below the largest cutoff {CUTOFFS[-1]}, so "
                f"HR@{CUTOFFS[-1]} would be too low; raise it"
            )
        return self
