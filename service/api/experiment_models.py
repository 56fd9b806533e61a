"""How changes of bundles and experiments go over the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Field(
    strict=True,
    gt=0,
    le=1,
    allow_inf_nan=False,
    description="Part of the users that get bundle B, 0.1 for a tenth. Raising it moves users from A to B "
    "only.",
)


class ActivationStatus(BaseModel):
    """How the last change of bundles that this replica was asked for stands."""

    bundle_id: str
    state: Literal["idle", "opening", "waiting", "carrying", "done", "failed"]
    detail: str
    experiment_id: str = Field(
        default="", description="The experiment that is to begin with it; empty for an activation."
    )


class ExperimentIn(BaseModel):
    """An experiment to begin."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"bundle_id": "0123456789abcdef", "share": 0.1, "name": "grounded, six epochs"}]
        },
    )

    bundle_id: str = Field(
        max_length=64, description="Bundle B; `GET /admin/bundles` lists those that can be served."
    )
    share: float = Share
    name: str = Field(default="", max_length=200, description="For people.")


class ShareIn(BaseModel):
    """A new share."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"share": 0.5}]})

    share: float = Share


class EventNumbers(BaseModel):
    """Events of one kind that followed from a variant's answers."""

    events: int
    rate: float | None = Field(description="Events per answer; null without answers.")
    low: float | None = Field(description="Lower end of the rate's 95 % interval.")
    high: float | None = Field(description="Upper end.")


class VariantNumbers(BaseModel):
    """What one variant has earned."""

    bundle_id: str
    answers: int
    fallbacks: int = Field(description="Answers of the other variant to this one's users.")
    events: dict[str, EventNumbers] = Field(description="By kind: view, click, purchase...")


class Gain(BaseModel):
    """B's rate less A's."""

    difference: float
    low: float = Field(description="Lower end of the 95 % interval; above 0: B is better.")
    high: float = Field(description="Upper end; below 0: B is worse.")


class ExperimentReport(BaseModel):
    """An experiment and its numbers, over all replicas."""

    experiment_id: str
    name: str
    a: str = Field(description="The bundle that was active when it began.")
    b: str
    share: float
    started_at: datetime
    ended_at: datetime | None
    outcome: Literal["running", "stopped", "promoted", "replaced"]
    variants: dict[Literal["a", "b"], VariantNumbers] | None = Field(
        description="Null while Redis is away. Intervals count users, not answers: one who clicks often does "
        "not make them narrow."
    )
    gains: dict[str, Gain] = Field(description="By kind of event, where both rates are known.")


class ExperimentList(BaseModel):
    """Experiments, newest first, and what is going on."""

    running: ExperimentReport | None
    activation: ActivationStatus
    ended: list[ExperimentReport] = Field(description="The newest ones.")
