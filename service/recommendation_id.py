"""Names of answers. Each says which bundle made it and for which arm of which experiment, so that an event
which names the answer it followed from can be credited without anything being stored per answer."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

FORCED = "forced"

_PATTERN = re.compile(
    r"(?P<bundle_id>[0-9a-f]{16})"
    r"(?:-(?:(?P<forced>forced)|(?P<experiment>[0-9a-f]{8})(?P<variant>[ab])(?P<bucket>[0-9a-f]{2})))?"
    r"-[0-9a-f]{32}"
)


@dataclass(frozen=True)
class Origin:
    """Where an answer came from.

    Attributes:
        variant: "a", "b" or "forced", as in metrics.
        experiment_id: the experiment that it counts in; "" for none.
        bucket: the part of the experiment's users that it was given to.
    """

    bundle_id: str
    variant: str
    experiment_id: str = ""
    bucket: int = 0


def experiment_tag(experiment_id: str, variant: str, bucket: int) -> str:
    """What names of answers hold that count in an experiment."""
    return f"{experiment_id}{variant}{bucket:02x}"


def new_recommendation_id(bundle_id: str, tag: str = "") -> str:
    """A unique name, `<bundle_id>-<32 hex digits>` with the tag between them if there is one.

    Args:
        bundle_id: of the bundle that answers.
        tag: from `experiment_tag`, or `FORCED`.
    """
    return "-".join(part for part in (bundle_id, tag, uuid.uuid4().hex) if part)


def origin_of(recommendation_id: str) -> Origin | None:
    """What a name says; None if it is not one of ours."""
    match = _PATTERN.fullmatch(recommendation_id)
    if match is None:
        return None
    if match["experiment"]:
        return Origin(match["bundle_id"], match["variant"], match["experiment"], int(match["bucket"], 16))
    return Origin(match["bundle_id"], match["forced"] or "a")
