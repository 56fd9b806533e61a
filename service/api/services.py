"""What the routes work with, made once by the app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.access import Caller, Callers, Rates
from service.access.callers import require
from service.api.context import Context
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
    callers: Callers
    rates: Rates
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


def caller_of(
    context: Context,
    services: ServicesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> Caller:
    """Who sends this request; counts it against their rate."""
    caller = services.callers.identify(bearer.credentials if bearer is not None else header)
    context.fields["caller"] = caller.name
    services.rates.take(caller)
    return caller


CallerDep = Annotated[Caller, Depends(caller_of)]


def require_read(caller: CallerDep) -> None:
    """Let through whoever may ask for recommendations, items and histories."""
    require(caller, "read")


def require_write(caller: CallerDep) -> None:
    """Let through whoever may send events, change items and delete users."""
    require(caller, "write")


def require_admin(caller: CallerDep) -> None:
    """Let through whoever may change what is served; nobody, unless a key for it exists."""
    require(caller, "admin")


require_key = require_read
