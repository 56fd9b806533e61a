"""Switching every replica to another bundle while all of them answer.

Two steps, so that no replica is left behind. First the next bundle is announced: every replica opens it
beside the one it serves, starts its engine and has it pass the test (the canary). When all that are
alive say so, whoever asked for it carries the changes over and moves the pointer, in one script; then
every replica gives new requests the new bundle, lets those that hold the old one finish, and closes it.
Whatever fails before the pointer moves leaves the old bundle in use everywhere.

The pointer outlives the processes: one that starts with the same configured bundle goes on with the
active one. One that was configured with another bundle since takes over from it: a deployment decides.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import redis.asyncio as aioredis

from service.bundle import Bundle
from service.bundle_shelf import BundleShelf
from service.catalogue import keys
from service.catalogue.carry_over import take_over
from service.catalogue.keeper import REDIS_FAILURES
from service.errors import ActivationConflict, CatalogueError, GtirecError
from service.serving import Current, Serving

BEAT_S = 0.5
FIRST_BEAT_S = 0.02  # until it is known what to serve
RETRY_S = 30.0  # after a bundle could not be opened
STALE_S = 10.0  # a replica that said nothing for so long is not waited for
NEXT_TTL_MS = 15_000  # renewed with every beat of the one who announced it
DRAIN_S = 60.0

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

State = Literal["idle", "opening", "waiting", "carrying", "done", "failed"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activation:
    """How the last activation that this replica was asked for stands."""

    bundle_id: str = ""
    state: State = "idle"
    detail: str = "nothing was activated here yet"


class Activator:
    """Follows the pointer, and moves it when asked to.

    Args:
        current: what requests get.
        shelf: where bundles are.
        make_serving: puts an opened bundle together with an unstarted engine.
        timeout_s: longest time for a bundle to be opened and its engine to be started.

    Attributes:
        replicas: what every replica that is alive says of itself.
        is_settled: it is known which bundle this replica should serve.
    """

    def __init__(
        self,
        current: Current,
        shelf: BundleShelf,
        make_serving: Callable[[Bundle], Serving],
        *,
        timeout_s: float,
    ) -> None:
        self.name = uuid.uuid4().hex[:12]
        self.replicas: dict[str, dict[str, Any]] = {}
        self.is_settled = False
        self.activation = Activation()
        self.previous_id: str | None = None
        self._current = current
        self._configured = current.serving.bundle_id
        self._shelf = shelf
        self._make_serving = make_serving
        self._timeout_s = timeout_s
        self._standby: Serving | None = None
        self._standby_id = ""
        self._problem, self._retry_at = "", 0.0
        self._opening: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._request: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the background."""
        self._task = asyncio.create_task(self._run(), name="activator")

    async def close(self) -> None:
        """Stop, and close what is open beside the current bundle."""
        tasks = [task for task in (self._task, self._request, self._opening) if task is not None]
        while pending := [task for task in (*tasks, *self._closing) if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=1)
        if self._standby is not None:
            await self._standby.close()

    def activate(self, bundle_id: str) -> None:
        """Begin to switch all replicas to a bundle; `activation` says how it goes.

        Raises:
            NotFound: it is not on this machine.
            ActivationConflict: another activation is going on, or it is active already.
            CatalogueError: Redis is away.
        """
        self._shelf.find(bundle_id)
        if self._request is not None and not self._request.done():
            raise ActivationConflict(f"bundle {self.activation.bundle_id} is being activated; wait for it")
        if bundle_id == self._current.serving.bundle_id:
            raise ActivationConflict(f"bundle {bundle_id} is active already")
        if self._current.client is None:
            raise CatalogueError("Redis is away, so no bundle can be activated now")
        self.activation = Activation(bundle_id, "opening", "the bundle is opened beside the active one")
        self._request = asyncio.create_task(self._activate(bundle_id), name="activation")

    async def finished(self, timeout_s: float) -> Activation:
        """Wait for the activation that is going on, but not longer than this."""
        if self._request is not None:
            await asyncio.wait({self._request}, timeout=timeout_s)
        return self.activation

    async def _activate(self, bundle_id: str) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._announce(bundle_id)
                await self._everybody_ready(bundle_id)
                self._say("carrying", "changes are carried over")
                old = self._current.serving
                standby = self._standby
                assert standby is not None
                await take_over(
                    self._client(), old.bundle_id, standby.catalogue, self._pointer(bundle_id, old)
                )
                await self._current.other_than(old)
            self._say("done", "all replicas that are alive switch to it now")
        except TimeoutError:
            await self._give_up(f"it was not ready within {self._timeout_s:g} s")
        except (GtirecError, *REDIS_FAILURES) as error:
            await self._give_up(str(error) if isinstance(error, GtirecError) else type(error).__name__)
        except Exception as error:
            log.exception("activating bundle %s failed", bundle_id)
            await self._give_up(f"a bug in the service ({type(error).__name__})")

    async def _announce(self, bundle_id: str) -> None:
        value = json.dumps({"bundle_id": bundle_id, "owner": self.name})
        if not await self._client().set(keys.NEXT_BUNDLE, value, nx=True, px=NEXT_TTL_MS):
            raise ActivationConflict("another replica is activating a bundle; wait for it")

    async def _everybody_ready(self, bundle_id: str) -> None:
        """Renew the announcement until every replica that is alive has the bundle open beside."""
        client = self._client()
        while True:
            await client.pexpire(keys.NEXT_BUNDLE, NEXT_TTL_MS)
            for name, says in self.replicas.items():
                if says["next"] == bundle_id and says["problem"]:
                    raise CatalogueError(f"replica {name} cannot serve it: {says['problem']}")
            late = [name for name, says in self.replicas.items() if says["standby"] != bundle_id]
            if self._standby is not None and self._standby.is_ready and self.replicas and not late:
                return
            self._say("waiting", f"{len(late)} of {len(self.replicas)} replicas are not ready yet")
            await asyncio.sleep(BEAT_S / 2)

    async def _give_up(self, reason: str) -> None:
        self._say("failed", f"{reason}; the bundle before stays active")
        log.error("bundle %s was not activated: %s", self.activation.bundle_id, reason)
        try:
            if (raw := await self._client().get(keys.NEXT_BUNDLE)) and json.loads(raw)["owner"] == self.name:
                await self._client().delete(keys.NEXT_BUNDLE)
        except REDIS_FAILURES:
            log.warning("the announcement of bundle %s expires by itself", self.activation.bundle_id)

    def _say(self, state: State, detail: str) -> None:
        self.activation = replace(self.activation, state=state, detail=detail)

    def _pointer(self, bundle_id: str, old: Serving) -> dict[str, object]:
        configured = sorted({says["configured"] for says in self.replicas.values()} | {self._configured})
        return {
            "bundle_id": bundle_id,
            "previous": old.bundle_id,
            "configured": configured,
            "at": time.time(),
        }

    def _client(self) -> aioredis.Redis:
        return self._current.serving.catalogue.patient

    async def _run(self) -> None:
        while True:
            try:
                if self._current.client is not None:
                    await self._beat()
                elif self._current.serving.catalogue.status.state == "down":
                    self.is_settled = True  # nobody can say what should be served: serve what is there
            except REDIS_FAILURES as error:
                self._current.report_loss(error)
            except Exception:
                log.exception("following the active bundle failed; it is tried again")
            await asyncio.sleep(BEAT_S if self.is_settled else FIRST_BEAT_S)

    async def _beat(self) -> None:
        client = self._client()
        said = await client.eval(_BEAT, 1, keys.REPLICAS, self.name, json.dumps(self._own()), str(STALE_S))
        pairs = zip(said[::2], said[1::2], strict=True)
        self.replicas = {name.decode(): json.loads(says) for name, says in pairs}
        active, following = await client.mget(keys.ACTIVE_BUNDLE, keys.NEXT_BUNDLE)
        if active is None:
            first = self._pointer(self._configured, self._current.serving) | {"previous": None}
            await client.set(keys.ACTIVE_BUNDLE, json.dumps(first), nx=True)
            active = await client.get(keys.ACTIVE_BUNDLE) or json.dumps(first)
        pointer = json.loads(active)
        self.previous_id = pointer["previous"]
        await self._follow(pointer, json.loads(following)["bundle_id"] if following else "")

    async def _follow(self, pointer: dict[str, Any], next_id: str) -> None:
        active_id, current = pointer["bundle_id"], self._current.serving
        if active_id == current.bundle_id:
            self.is_settled = True
            await self._keep_beside(next_id if next_id != active_id else "")
        elif not self.is_settled and self._configured not in pointer["configured"]:
            if current.is_ready:  # deployed with another bundle than the fleet was when it was activated
                log.info("bundle %s was deployed and takes over from %s", current.bundle_id, active_id)
                about = {"previous": active_id, "configured": [self._configured]}
                deployed = self._pointer(current.bundle_id, current) | about
                await take_over(self._client(), active_id, current.catalogue, deployed)
        else:
            await self._keep_beside(active_id)
            if self._standby is not None and self._standby.is_ready and self._standby.is_up_to_date:
                self._switch()

    async def _keep_beside(self, bundle_id: str) -> None:
        """Have this bundle open beside the current one, and no other."""
        failed_long_ago = self._problem and time.monotonic() > self._retry_at
        if bundle_id == self._standby_id and not failed_long_ago:
            return
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening})
        if self._standby is not None:
            self._close_later(self._standby, drain_s=0.0)
        self._standby, self._standby_id, self._problem = None, bundle_id, ""
        if bundle_id:
            self._opening = asyncio.create_task(self._open(bundle_id), name=f"open-{bundle_id}")

    async def _open(self, bundle_id: str) -> None:
        try:
            bundle = await asyncio.to_thread(self._shelf.open, bundle_id)
            self._standby = self._make_serving(bundle)
            self._standby.start()
            await self._standby.ready()
        except (GtirecError, OSError) as error:
            log.error("bundle %s cannot be served here: %s", bundle_id, error)
            self._problem, self._retry_at = str(error), time.monotonic() + RETRY_S

    def _switch(self) -> None:
        assert self._standby is not None
        before = self._current.switch(self._standby)
        log.info("bundle %s is served now, %s before", self._standby_id, before.bundle_id)
        self._standby, self._standby_id, self.is_settled = None, "", True
        self._close_later(before, drain_s=DRAIN_S)

    def _close_later(self, serving: Serving, drain_s: float) -> None:
        async def close() -> None:
            await serving.drain(drain_s)
            await serving.close()

        task = asyncio.create_task(close(), name=f"close-{serving.bundle_id}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _own(self) -> dict[str, Any]:
        serving, standby = self._current.serving, self._standby
        is_standby_ready = standby is not None and standby.is_ready
        return {
            "bundle_id": serving.bundle_id,
            "catalogue_version": serving.catalogue.version,
            "decode_version": serving.catalogue.snapshot.version,
            "is_ready": serving.is_ready,
            "configured": self._configured,
            "next": self._standby_id,
            "standby": standby.bundle_id if standby is not None and is_standby_ready else "",
            "problem": self._problem,
        }
