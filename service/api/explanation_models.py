"""How an explanation goes over the wire."""

from __future__ import annotations

from pydantic import BaseModel, Field


class SharedCodes(BaseModel):
    """An item of the history whose semantic ID begins like the recommended one's."""

    item_id: str
    levels: int = Field(description="How many codes are the same, from the first on.")


class Effect(BaseModel):
    """What one item of the history did for the recommended item."""

    item_id: str
    logprob_change: float = Field(
        description="Log-probability with the whole history minus that without this item: positive speaks "
        "for the recommendation, negative against it."
    )


class Explanation(BaseModel):
    """Why an item was recommended: from the model and the IDs, never made up."""

    code_words: list[list[str]] = Field(
        description="For each beginning of the semantic ID, from one code to all: words that tell the titles "
        "which begin so from the others."
    )
    shared: list[SharedCodes] = Field(description="Items of the history that begin alike, nearest first.")
    effects: list[Effect] = Field(description="Largest first; empty where the model did not choose the item.")
