"""Recipe sections `[encoder]` (text to vector) and `[semantic_ids]` (vector to codes)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.semantic_ids.item_text import ItemTextConfig


class EncoderConfig(BaseModel):
    """How the text of an item becomes a vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tfidf_svd", "base_lm", "transformer"] = Field(
        default="tfidf_svd",
        description="tfidf_svd: no weights needed; base_lm: mean-pooled hidden states of the base model; "
        "transformer: any sentence-transformers or HF encoder, see `name`",
    )
    name: str | None = Field(default=None, description="transformer: hub name or folder of the encoder")
    revision: str | None = Field(default=None, description="transformer: commit or tag of a hub model")
    pooling: Literal["mean", "last", "cls"] = Field(
        default="mean",
        description="base_lm, transformer: mean of all tokens; last: for decoder embedders such as "
        "Qwen3-Embedding; cls: for models such as BGE",
    )
    text_prefix: str = Field(
        default="", description='transformer: put before every text, e.g. "passage: " for E5 models'
    )
    ship_weights: bool | None = Field(
        default=None,
        description="base_lm, transformer: put the weights into the bundle, so that new items can be "
        "encoded anywhere; unset: where they take at most 200 MB. Otherwise the bundle names the model",
    )
    max_tokens: int = Field(default=256, ge=8, description="base_lm, transformer: longer texts are cut")
    batch_size: int = Field(default=64, ge=1, description="base_lm, transformer: texts at once")
    text: ItemTextConfig = ItemTextConfig()
    dim: int = Field(default=128, ge=2, le=4096, description="tfidf_svd: dimensions kept")
    max_words: int = Field(default=2, ge=1, le=4, description="tfidf_svd: longest run of words that counts")
    min_items: int = Field(default=2, ge=1, description="tfidf_svd: rarer terms are dropped")
    max_share: float = Field(default=0.3, gt=0, le=1, description="tfidf_svd: commoner terms are dropped")
    max_chars: int = Field(
        default=0,
        ge=0,
        le=8,
        description="tfidf_svd: longest piece of a word that counts, from 3 letters up; 0 = whole words "
        "only. For part numbers and for languages that compound or inflect much",
    )
    max_terms: int = Field(
        default=200_000, ge=100, description="tfidf_svd: only so many of the commonest terms are kept"
    )
    collaborative_weight: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="length of a second part made from which items follow each other in the training "
        "sequences, against a text part of length 1; 0 = text alone; tfidf_svd only",
    )
    collaborative_dim: int = Field(default=64, ge=2, le=1024, description="dimensions of that part")
    collaborative_window: int = Field(default=5, ge=1, description="items apart that still count as together")
    collaborative_trust: float = Field(
        default=5.0, ge=0, description="co-occurrences at which an item's own part weighs half"
    )

    @model_validator(mode="after")
    def _fits(self) -> EncoderConfig:
        if self.kind == "transformer" and not self.name:
            raise ValueError("kind = 'transformer' needs `name`, a hub name or a folder")
        if 0 < self.max_chars < 3:
            raise ValueError(f"max_chars = {self.max_chars}: pieces start at 3 letters; set 0 or at least 3")
        if self.kind != "tfidf_svd" and self.collaborative_weight:
            raise ValueError("collaborative_weight works with kind = 'tfidf_svd' only; set it to 0")
        return self

    def input_paths(self) -> Iterator[Path]:
        """The encoder's folder, if it is one."""
        if self.name and Path(self.name).exists():
            yield Path(self.name)


class RqVaeConfig(BaseModel):
    """How an RQ-VAE is built and trained; kind = "rqvae" only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden_sizes: tuple[int, ...] = Field(
        default=(512, 256), description="widths between the vectors and the codebooks' space"
    )
    latent_dim: int = Field(default=32, ge=1, le=4096, description="width of the codebooks' space")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="after every hidden layer")
    steps: int = Field(default=4000, ge=1, description="optimizer steps")
    batch_size: int = Field(default=1024, ge=1, description="vectors per step")
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    final_learning_rate: float = Field(default=1e-5, ge=0, le=1, description="end of the cosine")
    warmup_share: float = Field(default=0.02, ge=0, lt=1, description="part of the steps")
    weight_decay: float = Field(default=0.0, ge=0)
    commitment: float = Field(
        default=0.25, ge=0, description="how strongly the encoder is held to its centroids"
    )
    kmeans_init: bool = Field(default=True, description="seed the codebooks by residual k-means")
    revive_every: int = Field(
        default=200, ge=0, description="steps between two looks for codes that no vector uses; 0 = never"
    )
    revive_until: float = Field(
        default=0.8, ge=0, le=1, description="part of the steps after which no code is moved any more"
    )
    diversity: float = Field(
        default=0.0, ge=0, description="weight of LETTER's diversity term (its paper: 1e-4); 0 = none"
    )
    diversity_groups: int = Field(default=10, ge=2, description="groups of like codes per level")
    regroup_every: int = Field(default=200, ge=1, description="steps between two groupings")
    sinkhorn_epsilon: float = Field(
        default=0.003,
        ge=0,
        lt=1,
        description="last level, while training: vectors are spread evenly over the codes, the more "
        "strictly the larger; 0 = nearest code",
    )
    sinkhorn_iterations: int = Field(default=50, ge=1)


class SemanticIdsConfig(BaseModel):
    """How vectors become semantic IDs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["residual_kmeans", "rqvae", "file"] = Field(
        default="residual_kmeans",
        description="residual_kmeans: fast, nothing to diverge; rqvae: encoder, codebooks and decoder "
        "learned together, see `rqvae`; file: read ready semantic IDs from `file`",
    )
    file: Path | None = Field(
        default=None, description='JSON object item_id -> ["<a_1>", "<b_2>", ...], as MiniOneRec writes it'
    )
    num_levels: int = Field(default=3, ge=1, le=8)
    codebook_size: int = Field(
        default=256,
        ge=2,
        le=65_536,
        description="codes per level, at most; a small catalogue gets at most one code for two items",
    )
    collisions: Literal["reassign", "sinkhorn", "extra_level", "keep"] = Field(
        default="reassign",
        description="items with equal codes: reassign moves all but the nearest to free codes; "
        "sinkhorn first spreads the items of a crowded prefix evenly over the last level, then reassigns; "
        "extra_level numbers them; keep lets them share (the bundle's tie-break orders them)",
    )
    num_iterations: int = Field(default=25, ge=1, description="residual_kmeans: Lloyd iterations, at most")
    rqvae: RqVaeConfig = RqVaeConfig()

    @model_validator(mode="after")
    def _fits(self) -> SemanticIdsConfig:
        if (self.kind == "file") != (self.file is not None):
            raise ValueError("kind = 'file' and `file` belong together")
        return self

    def input_paths(self) -> Iterator[Path]:
        """The file of ready semantic IDs."""
        if self.file is not None:
            yield self.file
