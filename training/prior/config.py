"""Recipe section `[prior]`: what else than the model orders the items that it proposes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PriorConfig(BaseModel):
    """A few weights, fitted on validation rows; kept only if they help on the later half of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(default=False, description="fit a prior; false: the model alone orders the items")
    rows: int = Field(default=2000, ge=20, description="validation rows read, at most, evenly spread")
    beam_width: int = Field(default=50, ge=10, le=1000, description="beams kept; as served")
    recent_share: float = Field(
        default=0.1, gt=0, le=1, description="newest part of the training rows that the trend looks at"
    )
    neighbours: int = Field(
        default=100,
        ge=0,
        le=1000,
        description="nearest items, by the vectors that the semantic IDs were made from, that count as "
        "alike; 0: likeness has no say",
    )
    ridge: float = Field(default=1.0, ge=0, description="pull of every weight towards 0, in rows")
