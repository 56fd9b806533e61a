"""What the routes work with, made once by the app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.access import Caller, Callers, Rates
from service.access.callers import require
from service.api.context import Context
from service.bundle import Bundle
from service.catalogue import Catalogue, Operation, Written
from service.draining import Drain
from service.engine.supervisor import EngineSupervisor
from service.errors import BundleMoved
from service.events import EventRecorder
from service.recommender import Recommender
from service.rollout import Activator, Beside, BundleShelf, Current, Experiments, Follower, Serving
from service.settings import Settings

SWITCH_S = 5.0  # longest time between the pointer's move and this replica's switch that a write waits


@dataclass
class Services:
    """The parts of a running service, as one request sees them: bundle, catalogue, engine and recommender
    stay those of its beginning, also if another bundle is activated meanwhile.

    Attributes:
        serving: the bundle that the request is answered from.
        drain: what the process still takes on.
    """

    settings: Settings
    current: Current
    beside: Beside
    follower: Follower
    activator: Activator
    experiments: Experiments
    shelf: BundleShelf
    events: EventRecorder
    callers: Callers
    rates: Rates
    drain: Drain = field(default_factory=Drain)
    serving: Serving = field(init=False)

    def __post_init__(self) -> None:
        self.serving = self.current.serving

    @property
    def bundle(self) -> Bundle:
        """What is served."""
        return self.serving.bundle

    @property
    def catalogue(self) -> Catalogue:
        """Its items."""
        return self.serving.catalogue

    @property
    def engine(self) -> EngineSupervisor:
        """Its model."""
        return self.serving.engine

    @property
    def recommender(self) -> Recommender:
        """Its recommendations."""
        return self.serving.recommender

    def not_ready_reasons(self) -> list[str]:
        """Why requests should not be sent here; empty if they should.

        An unreachable Redis is no reason: the service answers from memory and says so.
        """
        reasons = []
        serving = self.current.serving
        if self.drain.is_draining:
            reasons.append("the service is shutting down")
        if not serving.engine.is_ready:
            reasons.append(serving.engine.detail)
        if (status := serving.catalogue.status).state not in ("ready", "down"):
            reasons.append(f"the catalogue is {status.state}: {status.detail}")
        elif self.follower.waits_for:
            reasons.append(self.follower.waits_for)
        return reasons

    async def write(self, operations: Sequence[Operation], **options: Any) -> Written:
        """Change items, under whatever bundle is active; see `Catalogue.write`. `serving` follows.

        The other bundle of an experiment has the changes too when this returns.
        """
        while True:
            try:
                written = await self.serving.catalogue.write(operations, **options)
                await self.follower.carry_changes()
                return written
            except BundleMoved as moved:
                try:
                    async with asyncio.timeout(SWITCH_S):
                        self.serving = await self.current.other_than(self.serving)
                except TimeoutError:
                    raise moved from None


async def _services(request: Request) -> AsyncIterator[Services]:
    # A copy: what is served may be exchanged while this request waits for something.
    services = replace(request.app.state.services)
    with services.serving.held():
        yield services


ServicesDep = Annotated[Services, Depends(_services)]

# Dependencies are coroutines also where they wait for nothing: FastAPI runs plain functions in threads, and
# that hop was a quarter of what a request costs here.

_bearer = HTTPBearer(auto_error=False, description="`Authorization: Bearer KEY`")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="`X-API-Key: KEY`")


async def caller_of(
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


async def require_read(caller: CallerDep) -> None:
    """Let through whoever may ask for recommendations, items and histories."""
    require(caller, "read")


async def require_write(caller: CallerDep) -> None:
    """Let through whoever may send events, change items and delete users."""
    require(caller, "write")


async def require_admin(caller: CallerDep) -> None:
    """Let through whoever may change what is served; nobody, unless a key for it exists."""
    require(caller, "admin")


require_key = require_read
