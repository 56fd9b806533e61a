"""What an encoder reads of an item: one text, put together the same way in training and serving."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ItemTextConfig(BaseModel):
    """Which parts of an item are read, and how often each is repeated (a bag of words has no order)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title_weight: int = Field(default=3, ge=0, le=10)
    description_chars: int = Field(default=600, ge=0, description="longer descriptions are cut")
    metadata_fields: tuple[str, ...] = Field(
        default=("brand", "category", "categories", "genres"), description="read where an item has them"
    )
    metadata_weight: int = Field(default=2, ge=0, le=10)


def item_text(title: str, description: str, metadata: str, config: ItemTextConfig) -> str:
    """The text of one item.

    Args:
        title, description: may be empty.
        metadata: a JSON object as text.
    """
    parts = [title] * config.title_weight
    values: dict[str, Any] = json.loads(metadata) if metadata else {}
    for name in config.metadata_fields:
        parts += [_plain(values.get(name))] * config.metadata_weight
    parts.append(description[: config.description_chars])
    return " \n".join(part for part in parts if part)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_plain(part) for part in value)
    return "" if value is None else str(value)
