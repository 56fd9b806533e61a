"""Recipe section `[export]`: what the bundle is called and says about itself."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ExportConfig(BaseModel):
    """Words for the model card; nothing here changes the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str | None = Field(default=None, description="heading of the model card; default: the run's name")
    data_note: str = Field(
        default="", description="where the data came from and under which terms, in a sentence or two"
    )
    intended_use: str = Field(
        default="",
        description="what the model is meant for, if more than recommending items of this catalogue",
    )
