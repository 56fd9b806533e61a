"""What the service says about itself over the wire."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from service.api.experiment_models import ExperimentReport


class Readiness(BaseModel):
    """Whether requests should be sent here."""

    ready: bool
    reasons: list[str] = Field(description="Why not; empty if ready.")
    engine: str
    catalogue: str


class Limits(BaseModel):
    """What a request may ask for."""

    max_k: int
    default_beam_width: int
    max_beam_width: int
    max_history: int
    history_limit: int = Field(description="Items of history that the model reads.")
    context_trained: bool = Field(description="Whether `context` is taken.")
    max_context_tokens: int = Field(description="Tokens of it that the model reads; 0 if it is not taken.")
    max_exclude: int


class ReplicaInfo(BaseModel):
    """What a replica that is alive says of itself."""

    bundle_id: str
    catalogue_version: int
    decode_version: int
    is_ready: bool
    standby: str = Field(description="Bundle that is open and tested beside the active one; empty if none.")
    problem: str = Field(description="Why it cannot serve the next bundle; empty if it can.")
    experiment: str = Field(default="", description="The experiment that it follows; empty if none.")


class Info(BaseModel):
    """What is being served."""

    name: str
    version: str
    bundle_id: str
    bundle_name: str
    catalogue_version: int = Field(description="Changes to the bundle's items known to this replica.")
    decode_version: int = Field(description="Those of them that the decode knows; deletes are ahead of it.")
    trie_version: str = Field(description="Hash of the semantic IDs in the decode.")
    replicas: dict[str, ReplicaInfo] = Field(description="What every replica that is alive says of itself.")
    num_items: int = Field(description="Items that can be recommended.")
    codebook_sizes: list[int]
    architecture: str
    engine: str
    engine_rebuilds: int
    catalogue: str
    experiment: ExperimentReport | None = Field(
        description="The running experiment: this bundle is its `a`. Null if none is running."
    )
    limits: Limits
    filter_attributes: dict[str, str] = Field(
        description="What items can be filtered by, and the kind of value to compare with."
    )
    metrics: dict[str, Any]
    provenance: dict[str, Any]
