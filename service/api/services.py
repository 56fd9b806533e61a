"""What the routes work with, made once by the app."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.bundle import Bundle
from service.catalogue import Catalogue
from service.engine.supervisor import EngineSupervisor
from service.events import EventRecorder
from service.recommender import Recommender
from service.settings import Settings


@dataclass
class Services:
    """The parts of a running service.

    Attributes:
        is_draining: set when the process was asked to stop; readiness fails from then on.
    """

    settings: Settings
    bundle: Bundle
    catalogue: Catalogue
    engine: EngineSupervisor
    events: EventRecorder
    recommender: Recommender
    is_draining: bool = False

    def not_ready_reasons(self) -> list[str]:
        """Why requests should not be sent here; empty if they should.

        An unreachable Redis is no reason: the service answers from memory and says so.
        """
        reasons = []
        if self.is_draining:
            reasons.append("the service is shutting down")
        if not self.engine.is_ready:
            reasons.append(self.engine.detail)
        if self.catalogue.status.state not in ("ready", "down"):
            reasons.append(f"the catalogue is {self.catalogue.status.state}: {self.catalogue.status.detail}")
        return reasons


def _services(request: Request) -> Services:
    return request.app.state.services


ServicesDep = Annotated[Services, Depends(_services)]

_bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer KEY`")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="`X-API-Key: KEY`")


def require_key(
    services: ServicesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> None:
    """Let a request through if no key is configured, or the right one was sent."""
    expected = services.settings.api_key
    if expected is None:
        return
    given = bearer.credentials if bearer is not None else header
    if given is None:
        raise HTTPException(
            401, "an API key is needed: send `Authorization: Bearer KEY`", {"WWW-Authenticate": "Bearer"}
        )
    if not secrets.compare_digest(given.encode(), expected.get_secret_value().encode()):
        raise HTTPException(403, "this API key is not valid")


require_read = require_key
require_write = require_key
