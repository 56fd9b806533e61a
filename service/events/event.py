"""One thing that a user did with an item."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import asdict, dataclass
from typing import Literal, get_args

EventKind = Literal[
    "view", "click", "cart", "purchase", "like", "play", "save", "impression", "dislike", "hide"
]
EVENT_KINDS: tuple[str, ...] = get_args(EventKind)

# What says that a user wants an item; the rest is recorded and exported, but the model does not read it.
HISTORY_KINDS = frozenset(EVENT_KINDS) - {"impression", "dislike", "hide"}


@dataclass(frozen=True)
class Event:
    """An event as it is kept.

    Attributes:
        event_id: unique among the user's events; a second one of the same id is a repetition.
        kind: one of `EVENT_KINDS`.
        timestamp: when it happened, seconds since 1970.
        received_at: when the service was told, seconds since 1970.
        recommendation_id: the answer of /recommend that it followed from, if any.
    """

    event_id: str
    user_id: str
    item_id: str
    kind: str
    timestamp: float
    received_at: float
    recommendation_id: str | None = None

    def to_json(self) -> str:
        """One line of ASCII."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    @classmethod
    def from_json(cls, text: str | bytes) -> Event:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not an event: {error}") from error


def natural_event_id(user_id: str, item_id: str, kind: str, timestamp: float | None) -> str:
    """An id for an event that came without one.

    The same dated event sent twice gets the same id, so that it is recognised; an undated one cannot be.
    """
    if timestamp is None:
        return uuid.uuid4().hex
    text = json.dumps([user_id, item_id, kind, timestamp])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
