"""Recipe section `[finetuning]`: how the model learns to recommend."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from training.learning.config import Precision


class LoraConfig(BaseModel):
    """Train small adapters instead of the whole model; needs the package peft."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=0, ge=0, le=1024, description="width of the adapters (paper: 8); 0 = no LoRA")
    alpha: int = Field(default=32, ge=1, description="strength: alpha / rank scales what they add")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="of the adapters' inputs")
    modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="projections that get one; the token matrices are always trained whole",
    )


class RankingConfig(BaseModel):
    """Ranking fine-tuning after SFT; kept only where it helps on validation by more than noise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=0, ge=0, description="optimizer steps; 0 = no ranking fine-tuning")
    rows: int = Field(default=4000, ge=1, description="training rows that are decoded, evenly spread")
    num_negatives: int = Field(default=8, ge=1, le=200, description="beams a target is held against")
    batch_rows: int = Field(default=16, ge=1, description="rows per step, each with all its candidates")
    learning_rate: float = Field(default=5e-5, gt=0, le=1)
    beta: float = Field(default=0.5, gt=0, description="of DPO: how far the model may move")
    anchor: float = Field(default=0.1, ge=0, description="weight of the plain loss on the target")
    precision: Precision = Field(default="auto", description="as in SFT")


class FinetuningConfig(BaseModel):
    """Supervised fine-tuning on histories, stopped early by validation NDCG@10."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: Literal["auto", "sequences", "rows"] = Field(
        default="auto",
        description="sequences: windows of whole user sequences, loss on every item but the first; "
        "rows: one example per (history, target), loss on the answer only; "
        "auto: sequences for the sequence style, rows for the chat style",
    )
    include_first_item: bool = Field(
        default=False, description="sequences: learn the first item of a sequence from the prefix alone too"
    )
    window_stride: int | None = Field(
        default=None,
        ge=1,
        description="sequences longer than a window are read in windows this many items apart, and every "
        "target counts once, in the window that shows it with the longest history; "
        "1 = every target with the full history it is served with; default: half the history limit",
    )
    alignment_share: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="[D] share of text pairs in every batch (multi-task), on top of batch_size histories; "
        "default: what the arm of grounding.init says, 0.25 for lc-rec and 0 for the others",
    )
    epochs: float = Field(default=15.0, gt=0, description="passes over the examples, at most")
    batch_size: int = Field(default=64, ge=1, description="examples per optimizer step")
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    final_learning_rate: float = Field(default=0.0, ge=0, le=1, description="end of the cosine")
    warmup_share: float = Field(default=0.05, ge=0, lt=1, description="part of the steps")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="of AdamW")
    weight_decay: float = Field(default=0.1, ge=0, description="matrices only")
    max_grad_norm: float = Field(default=1.0, ge=0, description="0 = no clipping")
    embedding_dropout: float = Field(default=0.1, ge=0, lt=1)
    residual_dropout: float = Field(default=0.1, ge=0, lt=1)
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="spread over the level's codes only")
    average_decay: float = Field(
        default=0.0, ge=0, lt=1, description="exponential average of the weights, e.g. 0.999; 0 = none"
    )
    precision: Precision = Field(
        default="auto",
        description="bf16: matrix products in bfloat16, weights in float32; auto: bf16 where the machine "
        "has instructions for it (avx512_bf16, or a GPU), else fp32",
    )
    micro_batch_tokens: int = Field(
        default=4096, ge=64, description="tokens computed at once; lower it if memory runs out"
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="under torchrun; full: every rank keeps a part of weights, gradients and moments (FSDP), "
        "for models whose training does not fit one GPU; none: every rank keeps the whole model",
    )
    evaluate_every_epochs: float = Field(
        default=1.0, gt=0, description="epochs between two validations, about"
    )
    patience: int = Field(default=5, ge=1, description="validations without a better NDCG@10 before stopping")
    validation_rows: int = Field(default=1000, ge=1, description="validation rows read, at most")
    validation_beam_width: int = Field(default=20, ge=10, le=1000)
    lora: LoraConfig = LoraConfig()
    ranking: RankingConfig = RankingConfig()
