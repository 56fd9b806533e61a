"""How the service connects to Redis."""

from __future__ import annotations

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

LOADER_TIMEOUT_S = 30.0


def connect(url: str, *, timeout_s: float) -> aioredis.Redis:
    """A client that gives up fast: the snapshot in memory answers sooner than a retry would.

    Args:
        url: redis://, rediss:// or unix:// URL.
        timeout_s: seconds for connecting and for every answer.

    Returns:
        A client with its own pool; nothing is sent yet. One immediate retry covers connections that
        went stale in the pool.
    """
    return aioredis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 1),
        protocol=2,  # Redis 6.2 and newer, and no push messages to wait for
        client_name="gti-rec",
    )
