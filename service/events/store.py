"""Events in Redis: per user a hash of events and a sorted set of their times.

Everything of one user lies under keys of one hash slot and is changed by one script, so that
recording, trimming and erasing are atomic. Times of retention come from Redis's clock: a replica whose
own clock jumps cannot make histories disappear.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from enum import IntEnum
from typing import Any

import redis.asyncio as aioredis

from service.catalogue.keys import UserKeys, all_user_events
from service.events.event import Event

ERASED_S = 7 * 24 * 3600  # how long other replicas' buffers are kept from bringing an erased user back
SCAN_COUNT = 1000


class Outcome(IntEnum):
    """What became of an event."""

    RECORDED = 1
    DUPLICATE = 0
    EXPIRED = -1  # older than the retention, or than the newest ones that are kept
    ERASED = -2  # came in before its user was erased


# KEYS: events, times, erased. ARGV: most events, retention in ms, then per event: id, ms or "" for
# now, received ms or "" for an event that comes straight from its sender, JSON.
_RECORD = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local cutoff = now - tonumber(ARGV[2])
local erased = tonumber(redis.call('GET', KEYS[3]) or '0')
local most = tonumber(ARGV[1])
local function is_too_old(moment)
  if moment < cutoff then return true end
  if redis.call('ZCARD', KEYS[2]) < most then return false end
  return moment < tonumber(redis.call('ZRANGE', KEYS[2], -most, -most, 'WITHSCORES')[2])
end
local outcomes = {}
for i = 3, #ARGV, 4 do
  local moment = ARGV[i + 1] == '' and now or math.min(tonumber(ARGV[i + 1]), now)
  if ARGV[i + 2] ~= '' and tonumber(ARGV[i + 2]) <= erased then
    table.insert(outcomes, -2)
  elseif redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    table.insert(outcomes, 0)
  elseif is_too_old(moment) then
    table.insert(outcomes, -1)
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 3])
    redis.call('ZADD', KEYS[2], moment, ARGV[i])
    table.insert(outcomes, 1)
  end
end
local function drop(ids)
  for _, id in ipairs(ids) do
    redis.call('HDEL', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
  end
end
drop(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. cutoff))
local extra = redis.call('ZCARD', KEYS[2]) - most
if extra > 0 then drop(redis.call('ZRANGE', KEYS[2], 0, extra - 1)) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return outcomes
"""

# KEYS: events, times. ARGV: most events, retention in ms. Newest first.
_READ = """
local clock = redis.call('TIME')
local cutoff = clock[1] * 1000 - tonumber(ARGV[2])
local ids = redis.call('ZREVRANGEBYSCORE', KEYS[2], '+inf', cutoff, 'LIMIT', 0, ARGV[1])
local found = {}
for _, id in ipairs(ids) do table.insert(found, redis.call('HGET', KEYS[1], id)) end
return found
"""

# KEYS: events, times, erased. ARGV: seconds to remember the erasing.
_ERASE = """
local clock = redis.call('TIME')
local count = redis.call('HLEN', KEYS[1])
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SET', KEYS[3], clock[1] * 1000 + math.floor(clock[2] / 1000), 'EX', ARGV[1])
return count
"""


class EventStore:
    """The scripts above as methods.

    Args:
        max_events: events kept per user; the oldest go first.
        retention_s: seconds after which an event is dropped.
    """

    def __init__(self, *, max_events: int, retention_s: float) -> None:
        self._max_events = max_events
        self._retention_ms = int(1000 * retention_s)

    async def record(
        self, client: aioredis.Redis, events: Sequence[Event], *, is_replay: bool = False
    ) -> list[Outcome]:
        """Record events in one round trip.

        Args:
            client: where to.
            events: of any users.
            is_replay: they were acknowledged earlier; those of users erased since then stay away.

        Returns:
            What became of each, in the order of `events`.
        """
        places: dict[str, list[int]] = {}
        for place, event in enumerate(events):
            places.setdefault(event.user_id, []).append(place)
        pipeline = client.pipeline(transaction=False)
        for user_id, mine in places.items():
            arguments: list[Any] = [self._max_events, self._retention_ms]
            for event in (events[place] for place in mine):
                is_now = not is_replay and event.timestamp == event.received_at
                moment = "" if is_now else int(1000 * event.timestamp)
                received = int(1000 * event.received_at) if is_replay else ""
                arguments += [event.event_id, moment, received, event.to_json()]
            pipeline.eval(_RECORD, 3, *_keys(user_id), *arguments)
        outcomes: dict[int, Outcome] = {}
        for mine, answer in zip(places.values(), await pipeline.execute(), strict=True):
            outcomes |= {place: Outcome(code) for place, code in zip(mine, answer, strict=True)}
        return [outcomes[place] for place in range(len(events))]

    async def read(self, client: aioredis.Redis, user_id: str, limit: int) -> list[Event]:
        """The newest events of a user, oldest first."""
        answer = await _eval(client, _READ, _keys(user_id)[:2], limit, self._retention_ms)
        return [Event.from_json(text) for text in reversed(answer) if text is not None]

    async def erase(self, client: aioredis.Redis, user_id: str) -> int:
        """Delete everything of a user; returns how many events there were.

        What stays for `ERASED_S` is the moment, under a one-way hash of the id: buffers of other replicas
        that are replayed later must not bring the user back.
        """
        return int(await _eval(client, _ERASE, _keys(user_id), ERASED_S))


async def all_events(client: aioredis.Redis) -> AsyncIterator[list[Event]]:
    """Every user's events, one list per user, oldest first."""
    async for key in client.scan_iter(match=all_user_events(), count=SCAN_COUNT):
        values: list[Any] = await client.hvals(key)  # pyright: ignore[reportGeneralTypeIssues]
        events = [Event.from_json(value) for value in values]
        yield sorted(events, key=lambda event: (event.timestamp, event.event_id))


async def is_synced(client: aioredis.Redis) -> bool:
    """Whether Redis has a write on disk before it answers; False where it does not say."""
    try:
        answer = await client.config_get("append*")
    except aioredis.ResponseError:  # a managed Redis may forbid CONFIG
        return False
    return answer.get("appendonly") == "yes" and answer.get("appendfsync") == "always"


def _keys(user_id: str) -> list[str]:
    keys = UserKeys(hashlib.sha256(user_id.encode()).hexdigest()[:32])
    return [keys.events, keys.times, keys.erased]


async def _eval(client: aioredis.Redis, script: str, keys: Sequence[str], *arguments: Any) -> Any:
    return await client.eval(script, len(keys), *keys, *arguments)  # pyright: ignore[reportGeneralTypeIssues]
