"""Recipe section `[base_model]`: which language model to start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.learning.config import Precision

MADE = "made"


class MadeConfig(BaseModel):
    """A small language model made on the spot, for machines without a model hub.

    The defaults give about 3 M parameters, trained in a minute or two on two cores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["qwen3", "llama"] = Field(default="qwen3", description="which HF model class")
    num_layers: int = Field(default=4, ge=1, le=64)
    hidden_size: int = Field(default=192, ge=16, le=4096)
    num_heads: int = Field(default=6, ge=1, le=64)
    num_kv_heads: int = Field(default=6, ge=1, le=64, description="must divide num_heads")
    head_dim: int = Field(default=32, ge=8, le=256, description="even; width of one head")
    intermediate_size: int = Field(default=512, ge=16, description="width inside the MLP")
    vocab_size: int = Field(
        default=4096, ge=300, le=200_000, description="entries of the byte-level BPE, special tokens included"
    )
    tie_embeddings: bool = Field(default=True, description="one matrix reads and writes tokens")
    max_positions: int = Field(default=1024, ge=64, description="longest text the model may be given")
    rope_theta: float = Field(default=10_000.0, gt=0)
    steps: int = Field(default=600, ge=1, description="optimizer steps; not used if `seconds` is given")
    seconds: float | None = Field(
        default=None,
        gt=0,
        description="train for about this long: the first steps are timed and the number of steps is "
        "then fixed and written down, so a killed run still ends with the same model; "
        "but another machine will take another number of steps",
    )
    batch_size: int = Field(default=32, ge=1, description="chunks of text per step")
    context_tokens: int = Field(default=128, ge=16, description="length of a chunk of text")
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0)
    precision: Precision = Field(default="auto", description="auto: bf16 where the machine has it, else fp32")

    @model_validator(mode="after")
    def _heads_fit(self) -> MadeConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads = {self.num_kv_heads} must divide num_heads = {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even, for rotary positions")
        if self.context_tokens > self.max_positions:
            raise ValueError(
                f"context_tokens = {self.context_tokens} must not exceed max_positions = {self.max_positions}"
            )
        return self


class BaseModelConfig(BaseModel):
    """Which language model to start from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        default=MADE,
        description="'made', or a Qwen3, Qwen2, Llama or Mistral model: a hub name such as "
        "Qwen/Qwen3-0.6B, or a folder in Hugging Face form",
    )
    revision: str | None = Field(default=None, description="commit or tag of a hub model; pin it")
    held_out_share: float = Field(
        default=0.05, ge=0.001, le=0.5, description="share of the items whose text measures perplexity"
    )
    held_out_tokens: int = Field(
        default=20_000, ge=100, description="at most so many tokens of it are read; big models are slow"
    )
    made: MadeConfig = MadeConfig()

    @property
    def is_made(self) -> bool:
        """True if the model is made on the spot."""
        return self.name == MADE

    def input_paths(self) -> Iterator[Path]:
        """The model's folder, if it is one: a change in it makes the stage run again."""
        if not self.is_made:
            yield Path(self.name)
