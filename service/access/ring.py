"""The keys of Redis, held in memory: checking a request costs no round trip and works without Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import redis.asyncio as aioredis
from pydantic import ValidationError
from redis import RedisError

from service.access.keys import ApiKey
from service.catalogue.keys import API_KEYS

REFRESH_S = 2.0  # a revoked key works at most this much longer

log = logging.getLogger(__name__)


class KeyRing:
    """A copy of the keys, refreshed in the background.

    While Redis is away the last copy counts: whoever was let in before stays in.

    Args:
        client_of: gives the Redis client while Redis is up.
    """

    def __init__(self, client_of: Callable[[], aioredis.Redis | None]) -> None:
        self._client_of = client_of
        self._keys: dict[str, ApiKey] = {}
        self._task: asyncio.Task[None] | None = None
        self.is_known = False

    def get(self, key_id: str) -> ApiKey | None:
        """The key of an id, or None."""
        return self._keys.get(key_id)

    def start(self) -> None:
        """Begin to refresh."""
        self._task = asyncio.create_task(self._refresh_for_ever(), name="key-ring")

    async def close(self) -> None:
        """Stop. Idempotent."""
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1)

    async def refresh(self) -> None:
        """Read the keys now, if Redis is there."""
        if (client := self._client_of()) is not None:
            self._keys = await read_keys(client)
            self.is_known = True

    async def _refresh_for_ever(self) -> None:
        while True:
            try:
                await self.refresh()
            except (RedisError, TimeoutError, OSError) as error:
                log.warning("the API keys could not be read (%s); the last ones count", type(error).__name__)
            except Exception:
                log.exception("the API keys could not be read; the last ones count")
            await asyncio.sleep(REFRESH_S if self.is_known else REFRESH_S / 20)


async def read_keys(client: aioredis.Redis) -> dict[str, ApiKey]:
    """All keys by id. One that cannot be read opens nothing and is logged."""
    keys: dict[str, ApiKey] = {}
    stored: dict[Any, Any] = await client.hgetall(API_KEYS)  # pyright: ignore[reportGeneralTypeIssues]
    for key_id, text in stored.items():
        try:
            keys[key_id.decode()] = ApiKey.model_validate_json(text)
        except ValidationError:
            log.error("the API key %s in Redis is damaged and opens nothing", key_id.decode())
    return keys


async def write_key(client: aioredis.Redis, key: ApiKey) -> None:
    """Add or replace a key."""
    await client.hset(API_KEYS, key.key_id, key.model_dump_json())  # pyright: ignore[reportGeneralTypeIssues]


async def delete_key(client: aioredis.Redis, key_id: str) -> bool:
    """Remove a key; False if there is none of this id."""
    return bool(await client.hdel(API_KEYS, key_id))  # pyright: ignore[reportGeneralTypeIssues]
