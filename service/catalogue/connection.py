"""How the service connects to Redis."""

from __future__ import annotations

from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from service.redis_url import SENTINEL, SentinelUrl, check_url

LOADER_TIMEOUT_S = 30.0


def connect(url: str, *, timeout_s: float) -> aioredis.Redis:
    """A client that gives up fast: the snapshot in memory answers sooner than a retry would.

    Args:
        url: see service/redis_url.py.
        timeout_s: seconds for connecting and for every answer.

    Returns:
        A client with its own pool; nothing is sent yet. One immediate retry covers connections that
        went stale in the pool. Behind Sentinels every new connection asks them who is the primary.

    Raises:
        ValueError: the URL cannot be understood.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 1),
        "protocol": 2,  # Redis 6.2 and newer, and no push messages to wait for
        "client_name": "gti-rec",
    }
    check_url(url)
    if not url.startswith(SENTINEL):
        return aioredis.Redis.from_url(url, **options)
    place = SentinelUrl.parse(url)
    timeouts = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    sentinels = Sentinel(list(place.hosts), sentinel_kwargs={**timeouts, **place.for_sentinels})
    return sentinels.master_for(place.service, **place.for_redis, **options)
