"""What goes over the wire about events and users."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from service.api.models import ItemId, Moment
from service.events import Event
from service.events.event import EventKind, natural_event_id

NO_CONTROLS = r"^[^\x00-\x1f\x7f]*$"  # a line break could be sent here but not in a path

UserId = Annotated[
    str,
    Field(min_length=1, max_length=256, pattern=NO_CONTROLS, description="The caller's name for the user."),
]

_EXAMPLE: JsonDict = {
    "user_id": "ann",
    "item_id": "item-17",
    "type": "purchase",
    "timestamp": "2026-01-31T12:00:00Z",
    "event_id": "order-4711-line-1",
}


class EventIn(BaseModel):
    """One thing that a user did with an item."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=JsonDict(examples=[_EXAMPLE]))

    user_id: UserId
    item_id: ItemId
    type: EventKind = Field(
        description="`impression`, `dislike` and `hide` are kept but are no history; a hidden item is not "
        "recommended to this user again."
    )
    event_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Your name of the event, unique for this user. Sending it again changes nothing, so a "
        "failed call can simply be repeated. Without one, equal events of equal timestamp count as one.",
    )
    timestamp: Moment | None = Field(
        default=None, description="When it happened: ISO 8601 with a time zone, or seconds since 1970. Now."
    )
    recommendation_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="The answer of /recommend that it followed from; credits the model that gave it.",
    )

    def to_event(self) -> Event:
        """As it is kept."""
        now = time.time()
        moment = None if self.timestamp is None else self.timestamp.timestamp()
        return Event(
            event_id=self.event_id or natural_event_id(self.user_id, self.item_id, self.type, moment),
            user_id=self.user_id,
            item_id=self.item_id,
            kind=self.type,
            timestamp=now if moment is None else moment,
            received_at=now,
            recommendation_id=self.recommendation_id,
        )


class EventAnswer(BaseModel):
    """The event lies on a disk: in Redis, or in a buffer that Redis gets as soon as it is back."""

    event_id: str
    duplicate: bool = Field(description="It was known already; nothing changed.")
    expired: bool = Field(
        description="It is older than what is kept of this user (number and age), and is dropped."
    )
    buffered: bool = Field(description="Redis is away; the event waits in the buffer.")


class LineProblem(BaseModel):
    """A line that was not accepted."""

    line: int = Field(description="1 is the first.")
    error: str


class BulkAnswer(BaseModel):
    """What became of the lines; each is in exactly one of the counts."""

    recorded: int
    duplicates: int
    expired: int
    rejected: int
    problems: list[LineProblem] = Field(description="The first of the rejected lines.")
    buffered: bool = Field(description="Redis is away; the events wait in the buffer.")


class EventOut(BaseModel):
    """An event of a user."""

    event_id: str
    item_id: str
    type: str
    timestamp: datetime
    recommendation_id: str | None = None

    @classmethod
    def of(cls, event: Event) -> EventOut:
        """As it is shown."""
        return cls(
            event_id=event.event_id,
            item_id=event.item_id,
            type=event.kind,
            timestamp=datetime.fromtimestamp(event.timestamp, UTC),
            recommendation_id=event.recommendation_id,
        )


class UserHistory(BaseModel):
    """What is known about a user."""

    user_id: str
    events: list[EventOut] = Field(description="The newest ones, oldest first.")


class Erased(BaseModel):
    """Nothing of the user is left."""

    user_id: str
    events: int = Field(description="How many were deleted.")
