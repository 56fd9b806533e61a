"""Recipe section `[refit]`: whether the model that serves also learns from the validation rows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RefitConfig(BaseModel):
    """After validation has chosen everything, its rows are the newest ones there are to learn from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(
        default=False,
        description="train once more from the grounded model on training and validation rows, for the "
        "passes that validation chose, and count both in the item prior, whose weights stay; the bundle "
        "then holds this model, and the tables show it beside the one trained on training rows alone",
    )
