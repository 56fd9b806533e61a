"""An experiment: bundle A, the active one, against bundle B, for a share of the users.

The definition lies in Redis, so that every replica follows it and a restart goes on with it. Who gets
which bundle follows from a hash of the experiment and the user alone: every replica says the same, nothing
is kept per user, and raising the share moves users from A to B only.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

import redis.asyncio as aioredis
from pydantic import BaseModel, ConfigDict, Field

from service.catalogue import keys
from service.catalogue.carry_over import END_EXPERIMENT
from service.errors import ExperimentConflict, NotFound
from service.recommendation_id import experiment_tag

NUM_BUCKETS = 64  # parts of the users whose numbers are kept apart, for the intervals
NUM_LISTED = 20

Variant = Literal["a", "b"]
Outcome = Literal["running", "stopped", "promoted", "replaced"]

# KEYS: active bundle, next bundle, running experiment, all experiments. ARGV: bundle A, experiment_id,
# experiment.
_START = """
local active = redis.call('GET', KEYS[1])
if not active or cjson.decode(active)['bundle_id'] ~= ARGV[1] then return 'moved' end
if redis.call('EXISTS', KEYS[3]) == 1 then return 'running' end
redis.call('SET', KEYS[3], ARGV[3])
redis.call('HSET', KEYS[4], ARGV[2], ARGV[3])
redis.call('DEL', KEYS[2])
return 'done'
"""

# KEYS: running experiment, all experiments. ARGV: experiment_id, outcome.
_STOP = (
    END_EXPERIMENT
    + """
local text = redis.call('GET', KEYS[1])
if not text or cjson.decode(text)['experiment_id'] ~= ARGV[1] then return 0 end
end_experiment(KEYS[1], KEYS[2], function() return ARGV[2] end)
return 1
"""
)

# KEYS: as above. ARGV: experiment_id, share.
_SHARE = """
local text = redis.call('GET', KEYS[1])
if not text then return 0 end
local experiment = cjson.decode(text)
if experiment['experiment_id'] ~= ARGV[1] then return 0 end
experiment['share'] = tonumber(ARGV[2])
text = cjson.encode(experiment)
redis.call('SET', KEYS[1], text)
redis.call('HSET', KEYS[2], ARGV[1], text)
return 1
"""


@dataclass(frozen=True)
class Seat:
    """Where an experiment puts a user.

    Attributes:
        variant: the bundle that the user gets.
        bucket: the part of the users that the user belongs to, 0 <= bucket < NUM_BUCKETS.
    """

    experiment_id: str
    variant: Variant
    bucket: int

    def tag(self, served: Variant) -> str:
        """What the name of an answer holds if this bundle made it."""
        return experiment_tag(self.experiment_id, served, self.bucket)


class Experiment(BaseModel):
    """One experiment, as it is kept.

    Attributes:
        a, b: bundle ids.
        share: of the users that get B, 0 < share <= 1.
        started_at, ended_at: seconds since 1970.
        outcome: "stopped": A stayed; "promoted": B became the active bundle; "replaced": a third one did.
    """

    model_config = ConfigDict(frozen=True)

    experiment_id: str = Field(pattern="^[0-9a-f]{8}$")
    name: str
    a: str
    b: str
    share: float = Field(gt=0, le=1)
    started_at: float
    ended_at: float | None = None
    outcome: Outcome = "running"

    @classmethod
    def new(cls, name: str, a: str, b: str, share: float) -> Experiment:
        """One that begins now."""
        return cls(
            experiment_id=secrets.token_hex(4), name=name, a=a, b=b, share=share, started_at=time.time()
        )

    def seat(self, unit: str) -> Seat:
        """Where a user sits.

        Args:
            unit: what the user is known by; equal units sit together.
        """
        digest = hashlib.sha256(f"{self.experiment_id}\n{unit}".encode("utf-8", "replace")).digest()
        place = int.from_bytes(digest[:8]) / 2**64  # uniform in [0, 1)
        return Seat(self.experiment_id, "b" if place < self.share else "a", digest[8] % NUM_BUCKETS)


async def start(client: aioredis.Redis, experiment: Experiment) -> None:
    """Let all replicas follow an experiment.

    Raises:
        ExperimentConflict: another one is running, or A is not active any more.
    """
    names = [keys.ACTIVE_BUNDLE, keys.NEXT_BUNDLE, keys.EXPERIMENT, keys.EXPERIMENTS]
    said = experiment.model_dump_json()
    outcome = await client.eval(_START, len(names), *names, experiment.a, experiment.experiment_id, said)
    if outcome == b"moved":
        raise ExperimentConflict("another bundle was activated meanwhile; start the experiment again")
    if outcome == b"running":
        raise ExperimentConflict("an experiment is running already; stop it first")


async def stop(client: aioredis.Redis, experiment_id: str) -> None:
    """End an experiment; everybody gets A again.

    Raises:
        NotFound: it is not running.
    """
    names = [keys.EXPERIMENT, keys.EXPERIMENTS]
    if not await client.eval(_STOP, len(names), *names, experiment_id, "stopped"):
        raise NotFound(f"no experiment {experiment_id} is running")


async def change_share(client: aioredis.Redis, experiment_id: str, share: float) -> None:
    """Give B another share of the users.

    Raises:
        NotFound: it is not running.
    """
    names = [keys.EXPERIMENT, keys.EXPERIMENTS]
    if not await client.eval(_SHARE, len(names), *names, experiment_id, repr(share)):
        raise NotFound(f"no experiment {experiment_id} is running")


async def read_all(client: aioredis.Redis) -> list[Experiment]:
    """The newest experiments, newest first; a running one among them."""
    stored: dict[Any, Any] = await client.hgetall(keys.EXPERIMENTS)  # pyright: ignore[reportGeneralTypeIssues]
    found = [Experiment.model_validate(json.loads(text)) for text in stored.values()]
    return sorted(found, key=lambda experiment: -experiment.started_at)[:NUM_LISTED]
