"""Names of answers. Each starts with the bundle that made it, so that an event which names the answer it
followed from can be credited to that bundle without anything being stored per answer."""

from __future__ import annotations

import re
import uuid

_PATTERN = re.compile(r"([0-9a-f]{16})-[0-9a-f]{32}")


def new_recommendation_id(bundle_id: str) -> str:
    """A unique name, `<bundle_id>-<32 hex digits>`."""
    return f"{bundle_id}-{uuid.uuid4().hex}"


def bundle_of(recommendation_id: str) -> str | None:
    """The bundle_id inside a name; None if the name is not one of ours."""
    match = _PATTERN.fullmatch(recommendation_id)
    return match[1] if match else None
