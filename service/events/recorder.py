"""Takes events: into Redis where that is durable, else into the buffer first, and replays the buffer.

An event is acknowledged after a sync to disk, never before: Redis with `appendfsync always` syncs
before it answers; the buffer syncs itself. A Redis that does not sync every write is fed through the
buffer, whose segments go only when Redis has had time to sync.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

import redis.asyncio as aioredis
from redis import ConnectionError as RedisConnectionError
from redis import RedisError
from redis import TimeoutError as RedisTimeoutError

from service.errors import CatalogueError, EventsNotStored
from service.events.attribution import Attribution
from service.events.buffer import EventBuffer
from service.events.event import Event
from service.events.store import EventStore, Outcome, is_synced
from service.observability import metrics

REPLAY_S = 0.5  # between looks at the buffer
REPLAY_BATCH = 500
UNSYNCED_S = 5.0  # `appendfsync everysec` has synced by then
CHECK_S = 10.0  # between checks of how Redis syncs

_CONNECTION_FAILURES = (RedisConnectionError, RedisTimeoutError, TimeoutError, OSError)
_FAILURES = (RedisError, TimeoutError, OSError)

log = logging.getLogger(__name__)


class RedisAccess(Protocol):
    """Where the client comes from."""

    @property
    def client(self) -> aioredis.Redis | None: ...

    def report_loss(self, error: BaseException) -> None: ...


@dataclass(frozen=True)
class EventLimits:
    """See the settings of the same names.

    Attributes:
        max_events: events kept per user.
        retention_s: seconds an event is kept.
        buffer_bytes: most bytes in the buffer.
    """

    max_events: int
    retention_s: float
    buffer_bytes: int


@dataclass(frozen=True)
class Recorded:
    """What became of the events of one call; every event is in exactly one count.

    Attributes:
        num_recorded: new and kept, or in the buffer.
        num_duplicates: known before.
        num_expired: older than what is kept of this user.
        is_buffered: they lie in the buffer, so that repetitions are found only when it is replayed.
    """

    num_recorded: int
    num_duplicates: int = 0
    num_expired: int = 0
    is_buffered: bool = False


@dataclass
class _Waiting:
    events: Sequence[Event]
    done: asyncio.Future[None] = field(repr=False)


class EventRecorder:
    """The events of all users.

    Args:
        redis: gives the client while Redis is up.
        directory: of the buffer.
        limits: what is kept, and how long.
        attribution: credits what is new to the answer that it followed from.
    """

    def __init__(
        self,
        redis: RedisAccess,
        directory: Path,
        limits: EventLimits,
        *,
        attribution: Attribution,
    ) -> None:
        self._redis = redis
        self._attribution = attribution
        self._limits = limits
        self._store = EventStore(max_events=limits.max_events, retention_s=limits.retention_s)
        self._buffer = EventBuffer(directory, max_bytes=limits.buffer_bytes)
        self._is_synced = False
        self._checked_at = -CHECK_S
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._replayed: dict[Path, tuple[float, str]] = {}

    def start(self) -> None:
        """Begin to replay what is in the buffer."""
        self._tasks = [
            asyncio.create_task(self._write_buffer(), name="event-buffer"),
            asyncio.create_task(self._replay_for_ever(), name="event-replay"),
        ]

    async def close(self) -> None:
        """Stop. Events in the buffer wait for the next start. Idempotent."""
        for task in self._tasks:
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=1)
        for waiting in self._waiting:
            if not waiting.done.done():
                waiting.done.set_exception(EventsNotStored("the service is shutting down; send it again"))
        self._waiting.clear()
        await asyncio.to_thread(self._buffer.close)

    async def record(self, events: Sequence[Event]) -> Recorded:
        """Record events. Returns once they are on a disk.

        Raises:
            EventsNotStored: neither Redis nor the buffer can take them.
        """
        client = self._redis.client
        if client is not None:
            try:
                await self._check_syncing(client)
                outcomes = await self._store.record(client, events) if self._is_synced else None
            except _FAILURES as error:
                # Perhaps done, perhaps not; replaying it is harmless, because every event has an id.
                self._report(error)
                outcomes = None
            if outcomes is not None:
                self._count(events, outcomes)
                return Recorded(
                    outcomes.count(Outcome.RECORDED),
                    outcomes.count(Outcome.DUPLICATE),
                    outcomes.count(Outcome.EXPIRED),
                )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(events, done))
        self._wake.set()
        await done
        return Recorded(len(events), is_buffered=True)

    async def history(self, user_id: str, limit: int | None = None) -> list[Event] | None:
        """The newest events of a user, oldest first; None if Redis is away."""
        client = self._redis.client
        if client is None:
            return None
        try:
            return await self._store.read(client, user_id, limit or self._limits.max_events)
        except _FAILURES as error:
            self._report(error)
            return None

    async def erase(self, user_id: str) -> int:
        """Delete everything of a user, here, in Redis, and in what other replicas may still replay.

        Returns:
            How many events there were.

        Raises:
            CatalogueError: Redis is away; repeat the request.
            EventsNotStored: the buffer's disk fails; repeat the request.
        """
        client = self._redis.client
        try:
            if client is None:
                raise RedisConnectionError
            num_erased = await self._store.erase(client, user_id)
        except _FAILURES as error:
            self._report(error)
            raise CatalogueError(
                "Redis is away, so this user cannot be erased everywhere now; repeat the request later"
            ) from error
        num_erased += await asyncio.to_thread(self._buffer.erase, user_id)
        metrics.USERS_ERASED.inc()
        return num_erased

    async def _write_buffer(self) -> None:
        """One sync to disk for all who wait at the same time."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            waiting, self._waiting = self._waiting, []
            if not waiting:
                continue
            events = [event for one in waiting for event in one.events]
            failure: EventsNotStored | None = EventsNotStored("the event buffer stopped; send it again")
            try:
                await asyncio.to_thread(self._buffer.append, events)
                failure = None
            except EventsNotStored as error:
                failure = error
                log.error("events were refused: %s", error)
            except Exception:
                log.exception("the event buffer failed")
            finally:
                _tell(waiting, failure)
            metrics.EVENTS_REFUSED.inc(len(events) if failure else 0)
            metrics.EVENT_BUFFER_BYTES.set(await asyncio.to_thread(self._buffer.num_bytes))

    async def _replay_for_ever(self) -> None:
        pause_s = REPLAY_S
        while True:
            pause_s = min(2 * pause_s, CHECK_S)
            try:
                if (client := self._redis.client) is not None:
                    await self._check_syncing(client)
                    await self._replay(client)
                    pause_s = REPLAY_S
                else:
                    self._checked_at, pause_s = -CHECK_S, REPLAY_S
            except _FAILURES as error:
                self._report(error)
            except Exception:
                log.exception("the event buffer could not be replayed; it is tried again")
            await asyncio.sleep(pause_s)

    async def _check_syncing(self, client: aioredis.Redis) -> None:
        if time.monotonic() - self._checked_at < CHECK_S:
            return
        is_first, before = self._checked_at < 0, self._is_synced
        self._is_synced = await is_synced(client)
        if not self._is_synced and (before or is_first):
            log.warning(
                "Redis does not sync every write (or does not say): events take the way through the buffer; "
                "set `appendonly yes` and `appendfsync always`"
            )
        self._checked_at = time.monotonic()

    async def _replay(self, client: aioredis.Redis) -> None:
        for segment in await asyncio.to_thread(self._buffer.take):
            if segment not in self._replayed:
                await self._replay_segment(client, segment)
            done_at, run_id = self._replayed.get(segment, (0.0, ""))
            if not self._is_synced:
                if time.monotonic() - done_at < UNSYNCED_S:
                    continue
                if await _run_id(client) != run_id:  # restarted before it synced: once more
                    del self._replayed[segment]
                    continue
            await asyncio.to_thread(self._buffer.remove, segment)
            del self._replayed[segment]
        metrics.EVENT_BUFFER_BYTES.set(await asyncio.to_thread(self._buffer.num_bytes))

    async def _replay_segment(self, client: aioredis.Redis, segment: Path) -> None:
        run_id = await _run_id(client)
        num_replayed = 0
        for batch in _batches(self._buffer.read(segment)):
            outcomes = await self._store.record(client, batch, is_replay=True)
            self._count(batch, outcomes)
            num_replayed += len(batch)
        self._replayed[segment] = (time.monotonic(), run_id)
        metrics.EVENTS_REPLAYED.inc(num_replayed)
        if self._is_synced:
            log.info("%d events of the buffer were replayed", num_replayed)

    def _count(self, events: Sequence[Event], outcomes: Sequence[Outcome]) -> None:
        for event, outcome in zip(events, outcomes, strict=True):
            metrics.EVENTS.labels(kind=event.kind, outcome=outcome.name.lower()).inc()
            if outcome is Outcome.RECORDED:
                self._attribution.count(event)

    def _report(self, error: BaseException) -> None:
        # A refusal (memory or disk full there) is no loss of the connection: reading may still work.
        if isinstance(error, _CONNECTION_FAILURES):
            self._redis.report_loss(error)
        else:
            log.error("Redis refused to store events (%s)", type(error).__name__)


async def _run_id(client: aioredis.Redis) -> str:
    return (await client.info("server"))["run_id"]


def _tell(waiting: Iterable[_Waiting], failure: EventsNotStored | None) -> None:
    for one in waiting:
        if one.done.done():  # its caller gave up
            continue
        if failure is None:
            one.done.set_result(None)
        else:
            one.done.set_exception(EventsNotStored(str(failure)))


def _batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    iterator = iter(events)
    while batch := list(islice(iterator, REPLAY_BATCH)):
        yield batch
