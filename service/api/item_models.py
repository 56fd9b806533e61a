"""What goes over the wire about items."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema

from service.api.models import ItemId, whole
from service.catalogue import Put

MAX_METADATA_BYTES = 16_384
MAX_METADATA_DEPTH = 8


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if _depth(value) > MAX_METADATA_DEPTH:
        raise ValueError(f"metadata may be nested {MAX_METADATA_DEPTH} levels deep")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata may take {MAX_METADATA_BYTES} bytes as JSON")
    return value


def _depth(value: Any) -> int:
    """How deep lists and objects are nested, without recursion."""
    depth, level = 0, [value]
    while level and depth <= MAX_METADATA_DEPTH:
        inner = [part for part in level if isinstance(part, dict | list)]
        level = [child for part in inner for child in (part.values() if isinstance(part, dict) else part)]
        depth += bool(inner)
    return depth


ID_PATTERN = r"^[^\x00-\x1f\x7f]+$"  # a URL path loses a newline at its end
NewItemId = Annotated[ItemId, Field(pattern=ID_PATTERN)]
Title = Annotated[str, Field(min_length=1, max_length=1000, description="What people read.")]
Description = Annotated[str, Field(max_length=20_000)]
Metadata = Annotated[
    dict[str, JsonValue],
    AfterValidator(_small),
    WithJsonSchema({"type": "object", "additionalProperties": True}),
    Field(
        description=f"Any JSON object of at most {MAX_METADATA_BYTES} bytes; flat ones can be filtered by."
    ),
]
Popularity = Annotated[
    int,
    Field(strict=True, ge=0, le=2**53, description="Where the model does not decide, more popular first."),
    BeforeValidator(whole),
]
Available = Annotated[
    bool, Field(strict=True, description="False takes the item out of all recommendations at once.")
]

_EXAMPLE = {
    "title": "Trail running shoe, women, size 39",
    "description": "Light shoe with a grippy sole for wet rock.",
    "metadata": {"brand": "Kestrel", "category": "shoes", "price": 89.0},
}


class ItemBody(BaseModel):
    """A whole item. What is left out is empty; `popularity` stays what it was."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    title: Title
    description: Description = ""
    metadata: Metadata = {}
    popularity: Popularity | None = None
    available: Available = True

    def put(self, item_id: str, *, if_version: int | None = None, only_new: bool = False) -> Put:
        """The change to the catalogue."""
        return Put(
            item_id=item_id,
            title=self.title,
            description=self.description,
            metadata=self.metadata,
            popularity=self.popularity,
            is_available=self.available,
            if_version=if_version,
            only_new=only_new,
        )


class ItemPatch(BaseModel):
    """Some fields of an item; the others stay. In `metadata`, null removes a field."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"available": False}, {"metadata": {"price": 79.0, "sale": True}}]},
    )

    title: Title | None = None
    description: Description | None = None
    metadata: Metadata | None = None
    popularity: Popularity | None = None
    available: Available | None = None

    def values(self) -> dict[str, Any]:
        """The fields that were given, as the catalogue names them."""
        given = {name: value for name in ItemPatch.model_fields if (value := getattr(self, name)) is not None}
        if "available" in given:
            given["is_available"] = given.pop("available")
        return given


class PutLine(ItemBody):
    """A line of a bulk request: the whole item."""

    op: Literal["put"] = "put"
    item_id: NewItemId


class PatchLine(ItemPatch):
    """A line of a bulk request: some fields."""

    op: Literal["patch"]
    item_id: NewItemId


class DeleteLine(BaseModel):
    """A line of a bulk request: take the item out."""

    model_config = ConfigDict(extra="forbid")

    op: Literal["delete"]
    item_id: NewItemId


class WrittenItem(BaseModel):
    """What became of one item."""

    item_id: str
    created: bool = Field(description="There was no such item before.")
    semantic_id: str | None = Field(description="The ID that the model writes for it; null if deleted.")
    version: int = Field(description="Send it as `If-Match` to change the item only if nobody else did.")
    catalogue_version: int = Field(description="The first version of the catalogue that has this change.")


class SkippedLine(BaseModel):
    """A line of a bulk request that was left out."""

    line: int = Field(description="1 is the first.")
    item_id: str | None = Field(description="null if the line could not be read.")
    error: str


class BulkReport(BaseModel):
    """What a bulk request did."""

    num_written: int = Field(description="Lines done; one commit, seen by everybody at once.")
    num_skipped: int
    skipped: list[SkippedLine] = Field(description="The first 1,000 of them.")
    catalogue_version: int


class SimilarItem(BaseModel):
    """An item like another one."""

    item_id: str
    rank: int = Field(description="1 is the most similar.")
    similarity: float | None = Field(
        description="Cosine between the vectors of the texts, -1 to 1; null if the bundle has no encoder."
    )
    shared_levels: int = Field(description="Leading levels of the semantic ID that both have.")
    semantic_id: str
    title: str
    metadata: dict[str, Any]


class SimilarItems(BaseModel):
    """Items like one item, most similar first."""

    item_id: str
    semantic_id: str
    items: list[SimilarItem]
