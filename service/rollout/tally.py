"""What the variants of experiments have earned: answers, and events that followed from them.

Counted in memory and added up in Redis twice a second, so that an answer costs no round trip. A replica
that is killed loses half a second of its counts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis.asyncio as aioredis

from service.catalogue import keys
from service.recommendation_id import Origin
from service.rollout.experiment import NUM_BUCKETS, Seat, Variant

ANSWERS, FALLBACKS = "answers", "fallbacks"
VARIANTS: tuple[Variant, ...] = ("a", "b")


@dataclass(frozen=True)
class Counts:
    """Of one experiment.

    Attributes:
        of_buckets: (variant, what) -> counts; what is "answers", "fallbacks" (users of this variant who
            got the other one's answer) or a kind of event. Shape: (NUM_BUCKETS,), int64.
    """

    of_buckets: dict[tuple[str, str], np.ndarray]

    def get(self, variant: str, what: str) -> np.ndarray:
        """Counts of the buckets. Shape: (NUM_BUCKETS,)."""
        return self.of_buckets.get((variant, what), np.zeros(NUM_BUCKETS, dtype=np.int64))

    @property
    def kinds(self) -> list[str]:
        """Kinds of events that were counted."""
        return sorted({what for _, what in self.of_buckets} - {ANSWERS, FALLBACKS})


class Tally:
    """Counts of this replica that are not in Redis yet."""

    def __init__(self) -> None:
        self._waiting: Counter[tuple[str, str]] = Counter()  # (experiment_id, field)
        self._flushing = asyncio.Lock()
        self._adding: asyncio.Task[None] | None = None

    def answer(self, seat: Seat, served: Variant) -> None:
        """A user of an experiment was answered."""
        self._waiting[seat.experiment_id, _field(served, seat.bucket, ANSWERS)] += 1
        if served != seat.variant:
            self._waiting[seat.experiment_id, _field(seat.variant, seat.bucket, FALLBACKS)] += 1

    def event(self, origin: Origin, kind: str) -> None:
        """Something followed from an answer."""
        if origin.experiment_id and origin.bucket < NUM_BUCKETS:
            self._waiting[origin.experiment_id, _field(origin.variant, origin.bucket, kind)] += 1

    async def flush(self, client: aioredis.Redis) -> None:
        """Add what waits to the counts in Redis; of experiments that there are.

        Raises:
            redis.RedisError: Redis failed; the counts go on waiting.
        """
        async with self._flushing:
            if self._adding is not None:
                await asyncio.wait({self._adding})
            if not self._waiting:
                return
            waiting, self._waiting = self._waiting, Counter()
            # Shielded: who is cancelled half-way does not know whether it was counted.
            self._adding = asyncio.create_task(self._add(client, waiting))
            await asyncio.shield(self._adding)

    async def _add(self, client: aioredis.Redis, waiting: Counter[tuple[str, str]]) -> None:
        try:
            named: set[Any] = set(await client.hkeys(keys.EXPERIMENTS))  # pyright: ignore[reportGeneralTypeIssues]
            pipeline = client.pipeline(transaction=True)
            for (experiment_id, name), count in waiting.items():
                if experiment_id.encode() in named:  # names of answers come from callers
                    pipeline.hincrby(keys.experiment_counts(experiment_id), name, count)
            await pipeline.execute()
        except Exception:
            self._waiting += waiting
            raise


async def read_counts(client: aioredis.Redis, experiment_id: str) -> Counts:
    """What all replicas have counted."""
    stored: dict[Any, Any] = await client.hgetall(keys.experiment_counts(experiment_id))  # pyright: ignore[reportGeneralTypeIssues]
    of_buckets: dict[tuple[str, str], np.ndarray] = {}
    for name, count in stored.items():
        variant, bucket, what = name.decode().split(":")
        counts = of_buckets.setdefault((variant, what), np.zeros(NUM_BUCKETS, dtype=np.int64))
        counts[int(bucket)] = int(count)
    return Counts(of_buckets)


def _field(variant: str, bucket: int, what: str) -> str:
    return f"{variant}:{bucket}:{what}"
