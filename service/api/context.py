"""What belongs to one HTTP request while it is being answered."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from service.observability.timings import Timings

_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass
class RequestContext:
    """Identity, stage times and log fields.

    Attributes:
        request_id: the caller's `X-Request-Id` where it is harmless to log, else a fresh one.
        fields: what the request's log line carries besides; no text of users.
    """

    request_id: str
    timings: Timings = field(default_factory=Timings)
    fields: dict[str, Any] = field(default_factory=dict)


def new_context(headers: list[tuple[bytes, bytes]]) -> RequestContext:
    """Context of a request that just arrived, from its raw headers."""
    given = next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), "")
    return RequestContext(given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex)


def request_context(scope: Mapping[str, Any]) -> RequestContext:
    """The context that the middleware put into an ASGI scope."""
    return scope["state"]["context"]


async def _of_request(request: Request) -> RequestContext:
    return request_context(request.scope)


Context = Annotated[RequestContext, Depends(_of_request)]
