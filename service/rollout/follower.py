"""Does what Redis says should be served, as every replica does: the active bundle, the next one beside it,
or the B of an experiment. Twice a second it says how it stands and hears how the others do.

The pointer outlives the processes: one that starts with the same configured bundle goes on with the
active one. One that was configured with another bundle since takes over from it: a deployment decides.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from typing import Any

import redis.asyncio as aioredis

from service.catalogue import keys
from service.catalogue.carry_over import take_over
from service.catalogue.keeper import REDIS_FAILURES
from service.observability import metrics
from service.rollout.beside import Beside
from service.rollout.experiment import Experiment, read_all
from service.rollout.mirror import Mirror
from service.rollout.serving import Current, Serving
from service.rollout.tally import Tally

BEAT_S = 0.5
FIRST_BEAT_S = 0.02  # until it is known what to serve
NUM_RECENT = 3  # experiments whose bundles are still credited; each is a label of metrics
STALE_S = 10.0  # a replica that said nothing for so long is not waited for

# KEYS: replicas. ARGV: own name, what to say as JSON, seconds after which the silent are forgotten.
_BEAT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode({at = now, says = ARGV[2]}))
local alive = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if cjson.decode(all[i + 1])['at'] < now - tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    table.insert(alive, all[i])
    table.insert(alive, cjson.decode(all[i + 1])['says'])
  end
end
return alive
"""

log = logging.getLogger(__name__)


class Follower:
    """Follows Redis in the background.

    Args:
        current: what requests get.
        beside: what is open beside it.
        tally: counts of experiments, brought to Redis with every beat.

    Attributes:
        name: of this replica.
        replicas: what every replica that is alive says of itself.
        waits_for: what must be opened before this replica should get requests; empty once it is settled.
        previous_id: the bundle that was active before; None if there was none.
    """

    def __init__(self, current: Current, beside: Beside, tally: Tally) -> None:
        self.name = uuid.uuid4().hex[:12]
        self.replicas: dict[str, dict[str, Any]] = {}
        self.waits_for = "word from Redis about which bundle is active"
        self.previous_id: str | None = None
        self.mirror = Mirror()
        self._experiment: Experiment | None = None
        self._recent: list[Experiment] = []
        self._current = current
        self._beside = beside
        self._tally = tally
        self._configured = current.serving.bundle_id
        self._task: asyncio.Task[None] | None = None

    @property
    def is_settled(self) -> bool:
        """It is known what this replica should serve, and it does."""
        return not self.waits_for

    @property
    def experiment(self) -> Experiment | None:
        """The running experiment, as long as its A is what is served here."""
        experiment = self._experiment
        return experiment if experiment and experiment.a == self._current.serving.bundle_id else None

    @property
    def client(self) -> aioredis.Redis:
        """A patient client, whether Redis is up or not."""
        return self._current.serving.catalogue.patient

    def start(self) -> None:
        """Begin in the background."""
        self._task = asyncio.create_task(self._run(), name="follower")

    async def close(self) -> None:
        """Stop, say goodbye, and bring the counts of the last moment to Redis."""
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1)
        await self.mirror.close()
        if self._current.client is not None:
            client = self._current.client
            try:
                await client.hdel(keys.REPLICAS, self.name)  # pyright: ignore[reportGeneralTypeIssues]
                await self._tally.flush(client)
            except REDIS_FAILURES as error:
                log.warning("the last counts of the experiment may be lost (%s)", type(error).__name__)

    def pointer(self, bundle_id: str, previous: str | None) -> dict[str, object]:
        """What says that a bundle is active."""
        configured = sorted({says["configured"] for says in self.replicas.values()} | {self._configured})
        return {"bundle_id": bundle_id, "previous": previous, "configured": configured, "at": time.time()}

    def served_bundles(self) -> set[str]:
        """Every bundle whose answers people may still be looking at."""
        about = {self._current.serving.bundle_id, self._beside.bundle_id, self.previous_id or ""}
        return (about | {bundle_id for each in self._recent for bundle_id in (each.a, each.b)}) - {""}

    async def carry_changes(self) -> None:
        """Bring what was just changed to the B of the experiment, if one is open here."""
        experiment, serving = self.experiment, self._beside.serving
        if experiment is not None and serving is not None and serving.bundle_id == experiment.b:
            await self.mirror.carry(self._current.serving.catalogue, serving.catalogue)

    async def _run(self) -> None:
        while True:
            try:
                if self._current.client is not None:
                    await self._beat()
                elif self._current.serving.catalogue.status.state == "down":
                    self.waits_for = ""  # nobody can say what should be served: serve what is there
            except REDIS_FAILURES as error:
                self._current.report_loss(error)
            except Exception:
                log.exception("following Redis failed; it is tried again")
            await asyncio.sleep(BEAT_S if self.is_settled else FIRST_BEAT_S)

    async def _beat(self) -> None:
        client = self.client
        said = await client.eval(_BEAT, 1, keys.REPLICAS, self.name, json.dumps(self._own()), str(STALE_S))
        pairs = zip(said[::2], said[1::2], strict=True)
        self.replicas = {name.decode(): json.loads(says) for name, says in pairs}
        active, following, running = await client.mget(keys.ACTIVE_BUNDLE, keys.NEXT_BUNDLE, keys.EXPERIMENT)
        if active is None:
            first = self.pointer(self._configured, None)
            await client.set(keys.ACTIVE_BUNDLE, json.dumps(first), nx=True)
            active = await client.get(keys.ACTIVE_BUNDLE) or json.dumps(first)
        pointer = json.loads(active)
        self.previous_id = pointer["previous"]
        before, self._experiment = self._experiment, _experiment(running)
        if before != self._experiment or not self.is_settled:
            self._recent = (await read_all(client))[:NUM_RECENT]
        metrics.EXPERIMENT_SHARE.set(self.experiment.share if self.experiment else 0)
        await self._follow(pointer, json.loads(following)["bundle_id"] if following else "")
        await self._tend_experiment(client)
        await self._tally.flush(client)

    async def _follow(self, pointer: dict[str, Any], next_id: str) -> None:
        active_id, current = pointer["bundle_id"], self._current.serving
        if active_id == current.bundle_id:
            await self._follow_beside(next_id if next_id != active_id else "")
        elif not self.is_settled and self._configured not in pointer["configured"]:
            if current.is_ready:  # deployed with another bundle than the fleet was when it was activated
                log.info("bundle %s was deployed and takes over from %s", current.bundle_id, active_id)
                about = {"configured": [self._configured]}
                deployed = self.pointer(current.bundle_id, active_id) | about
                await take_over(self.client, active_id, current.catalogue, deployed)
        else:
            if not self.is_settled:
                self.waits_for = "the bundle that is active elsewhere is being opened"
            await self._beside.keep(active_id)
            serving = self._beside.serving
            if serving is not None and serving.is_ready and serving.is_up_to_date:
                self._switch()

    async def _follow_beside(self, next_id: str) -> None:
        """Open what should be open beside the active bundle."""
        experiment = self.experiment
        await self._beside.keep(experiment.b if experiment else next_id)
        is_open = experiment is None or self._beside.is_ready or self._beside.problem
        if not self.is_settled:
            self.waits_for = "" if is_open else "the other bundle of the running experiment is being opened"

    async def _tend_experiment(self, client: aioredis.Redis) -> None:
        experiment, serving = self.experiment, self._beside.serving
        if experiment is None or serving is None or serving.bundle_id != experiment.b:
            self.mirror.forget()
            return
        is_ours = self.name == min(self.replicas, default=self.name) and serving.is_ready
        of = self._current.serving.catalogue
        await self.mirror.look(client, of, serving.catalogue, is_ours=is_ours)

    def _switch(self) -> None:
        serving = self._beside.take()
        assert serving is not None
        before = self._current.switch(serving)
        log.info("bundle %s is served now, %s before", serving.bundle_id, before.bundle_id)
        self._beside.retire(before)

    def _own(self) -> dict[str, Any]:
        serving: Serving = self._current.serving
        return {
            "bundle_id": serving.bundle_id,
            "catalogue_version": serving.catalogue.version,
            "decode_version": serving.catalogue.snapshot.version,
            "is_ready": serving.is_ready,
            "configured": self._configured,
            "next": self._beside.bundle_id,
            "standby": self._beside.ready_id,
            "problem": self._beside.problem or self.mirror.problem,
            "experiment": self.experiment.experiment_id if self.experiment else "",
        }


def _experiment(text: bytes | str | None) -> Experiment | None:
    return None if text is None else Experiment.model_validate_json(text)
