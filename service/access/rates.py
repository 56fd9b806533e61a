"""How often a caller may call: a token bucket per caller, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from service.access.keys import Caller
from service.errors import RateLimited
from service.observability import metrics

BURST_S = 2.0  # a caller that was quiet may send this many seconds' worth at once


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class Rates:
    """Buckets of all callers; the bound holds per replica.

    Args:
        default_per_s: for callers that have no bound of their own; None is no bound.
        clock: seconds that never run backwards.
    """

    def __init__(self, default_per_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._default_per_s = default_per_s
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}  # callers are keys that exist, so it stays small

    def take(self, caller: Caller, num_requests: int = 1) -> None:
        """Count requests of a caller.

        A call that is worth more than the bucket holds passes when the bucket is full, and is paid off
        afterwards.

        Raises:
            RateLimited: too many; says when to come back.
        """
        rate = caller.rate_per_s or self._default_per_s
        if rate is None:
            return
        now, most = self._clock(), max(1.0, BURST_S * rate)
        bucket = self._buckets.setdefault(caller.name, _Bucket(most, now))
        bucket.tokens = min(most, bucket.tokens + rate * (now - bucket.filled_at))
        bucket.filled_at = now
        needed = min(float(num_requests), most)
        if bucket.tokens < needed:
            metrics.RATE_LIMITED.inc()
            raise RateLimited(
                f"this key may send {rate:g} requests a second; come back when Retry-After says",
                retry_after_s=(needed - bucket.tokens) / rate,
            )
        bucket.tokens -= num_requests
