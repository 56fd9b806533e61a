"""Keeps the catalogue of an experiment's B in step with the active bundle's.

Whoever changes items brings the change over before answering. What a crash left in between, the replica
with the smallest name brings over within a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import redis.asyncio as aioredis

from service.catalogue import Catalogue
from service.catalogue.carry_over import mirror
from service.catalogue.keeper import REDIS_FAILURES
from service.catalogue.live_items import Head
from service.errors import GtirecError

MAX_LAG_S = 5.0  # a bundle that lags behind for longer is not served: it might recommend what is sold out

log = logging.getLogger(__name__)


class Mirror:
    """The changes of one catalogue, brought into another.

    Attributes:
        problem: why they could not be brought over; empty if they could.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._behind_since: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._carrying = asyncio.Lock()

    @property
    def is_fresh(self) -> bool:
        """The other catalogue has been in step lately."""
        return self._behind_since is None or time.monotonic() - self._behind_since < MAX_LAG_S

    async def look(self, client: aioredis.Redis, of: Catalogue, to: Catalogue, *, is_ours: bool) -> None:
        """See whether they agree, and begin to carry if they have not since the last look.

        Args:
            client: a patient one.
            of, to: the active catalogue and the other one.
            is_ours: it is this replica that carries what nobody else did.
        """
        found: list[Any] = await client.mget(of.log.keys.head, to.log.keys.mirrored)
        head, at = (value.decode() if value else "" for value in found)
        if at == f"{of.bundle_id}@{head or Head()}":
            self.forget()
            return
        is_new = self._behind_since is None
        self._behind_since = self._behind_since or time.monotonic()
        if is_ours and not is_new and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self.carry(of, to), name="mirror")

    async def carry(self, of: Catalogue, to: Catalogue) -> None:
        """Bring over what there is. A failure is logged and seen as lag: it is tried again."""
        async with self._carrying:
            try:
                await mirror(of.patient, of.log, to)
                self.problem = ""
            except (GtirecError, *REDIS_FAILURES) as error:
                self.problem = str(error) if isinstance(error, GtirecError) else type(error).__name__
                log.error("catalogue changes do not reach bundle %s: %s", to.bundle_id, self.problem)

    def forget(self) -> None:
        """There is nothing to carry."""
        self._behind_since, self.problem = None, ""

    async def close(self) -> None:
        """Stop."""
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1)
