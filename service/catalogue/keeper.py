"""Keeps the connection to Redis: connects, loads the catalogue, notices losses, comes back by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import redis.asyncio as aioredis
from redis import RedisError
from redis.exceptions import ClusterCrossSlotError, MovedError

from service.bundle import Bundle
from service.catalogue.connection import LOADER_TIMEOUT_S, connect
from service.catalogue.embedded import EmbeddedRedis
from service.catalogue.loader import Loader
from service.errors import CatalogueError
from service.redis_url import NO_CLUSTER

PING_S = 2.0
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0

State = Literal["connecting", "loading", "ready", "down", "broken"]
REDIS_FAILURES = (RedisError, OSError, TimeoutError)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogueStatus:
    """How the catalogue stands.

    Attributes:
        state: "ready": Redis answers; "down": unreachable, memory answers; "broken": Redis answers but
            loses items; "connecting" and "loading": not yet there.
        detail: one sentence for a person.
    """

    state: State
    detail: str


class RedisKeeper:
    """Background task around one Redis client.

    Args:
        bundle: whose catalogue must be there.
        url: Redis URL.
        timeout_s: seconds per look-up.
        embedded: the private server to start and restart, or None where Redis is someone else's.
        on_connected: awaited with a patient client before the catalogue counts as ready (again).
    """

    def __init__(
        self,
        bundle: Bundle,
        url: str,
        *,
        timeout_s: float,
        embedded: EmbeddedRedis | None = None,
        on_connected: Callable[[aioredis.Redis], Awaitable[None]] | None = None,
    ) -> None:
        self._bundle = bundle
        self._url = url
        self._timeout_s = timeout_s
        self._embedded = embedded
        self._on_connected = on_connected
        self._client = connect(url, timeout_s=timeout_s)
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.status = CatalogueStatus("connecting", "connecting to Redis")

    @property
    def client(self) -> aioredis.Redis | None:
        """The client while Redis is up and holds the whole catalogue, else None."""
        return self._client if self.status.state == "ready" else None

    def start(self) -> None:
        """Begin in the background; nothing waits for Redis."""
        self._task = asyncio.create_task(self._run(), name="redis-keeper")

    async def close(self) -> None:
        """Stop, disconnect, and stop a private server that nobody else uses."""
        if self._task is not None:
            while not self._task.done():  # libraries below may swallow one cancellation
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=1)
        await self._client.aclose()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.close)

    def report_loss(self, error: BaseException) -> None:
        """A look-up failed: answer from memory from now on, until Redis is back and verified."""
        if self.status.state == "ready":
            self._set("down", f"Redis is unreachable ({_brief(error)}); items come from memory")
            self._lost.set()

    async def _run(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            try:
                await self._bring_up()
                retry_s = FIRST_RETRY_S
                await self._watch()
            except _ServerDown as error:
                self._set("down", f"{error}; items come from memory")
            except CatalogueError as error:
                self._set("broken", str(error))
            except (MovedError, ClusterCrossSlotError):
                self._set("broken", f"{NO_CLUSTER}; items come from memory")
            except REDIS_FAILURES as error:
                self._set("down", f"Redis is unreachable ({_brief(error)}); items come from memory")
            except Exception:
                log.exception("the catalogue's keeper failed; it tries again")
                self._set("down", "the catalogue's keeper failed; see the log")
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)

    async def _bring_up(self) -> None:
        self._lost.clear()
        if self._embedded is not None:
            try:
                await asyncio.to_thread(self._embedded.ensure)
            except CatalogueError as error:
                raise _ServerDown(str(error)) from error
        loader_client = connect(self._url, timeout_s=LOADER_TIMEOUT_S)
        try:
            async with asyncio.timeout(self._timeout_s + 1):
                await loader_client.ping()
            report = await Loader(loader_client, self._bundle, self._on_progress).load()
            if self._on_connected is not None:
                await self._on_connected(loader_client)
            await self._client.ping()  # opens a connection, by which a private server sees that we use it
        finally:
            await loader_client.aclose()
        done = "found" if report.was_loaded else "loaded"
        self._set("ready", f"{report.num_items} items {done} and verified in {report.seconds:.1f} s")

    async def _watch(self) -> None:
        """Returns when a look-up reports a loss; raises when a ping fails."""
        while True:
            try:
                # No asyncio.wait_for here: on Python 3.11 it can swallow a cancellation.
                async with asyncio.timeout(PING_S):
                    await self._lost.wait()
                return
            except TimeoutError:
                await self._client.ping()

    def _on_progress(self, done: int, total: int) -> None:
        self._set("loading", f"{done} of {total} items are loaded")

    def _set(self, state: State, detail: str) -> None:
        before, self.status = self.status, CatalogueStatus(state, detail)
        if before.state != state:
            level = logging.WARNING if state in ("down", "broken") else logging.INFO
            log.log(level, "catalogue %s: %s", state, detail)


class _ServerDown(Exception):
    """The private server cannot be started; memory answers, as for any Redis that is away."""


def _brief(error: BaseException) -> str:
    # Messages of redis-py can carry the URL; the type says enough.
    return type(error).__name__
