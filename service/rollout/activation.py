"""Changes that need another bundle open on every replica while all of them answer: serving it instead of
the active one, or beside it in an experiment.

Two steps, so that no replica is left behind. First the bundle is announced: every replica opens it beside
the one it serves, starts its engine and has it pass the test (the canary). When all that are alive say so,
whoever asked for it carries the catalogue's changes over and makes the last step, in one script: it moves
the pointer, after which every replica gives new requests the new bundle, lets those that hold the old one
finish, and closes it; or it starts the experiment. Whatever fails before leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from service.catalogue import keys
from service.catalogue.carry_over import mirror, take_over
from service.catalogue.keeper import REDIS_FAILURES
from service.errors import ActivationConflict, CatalogueError, ExperimentConflict, GtirecError
from service.rollout import experiment as experiments
from service.rollout.beside import Beside
from service.rollout.experiment import Experiment
from service.rollout.follower import Follower
from service.rollout.serving import Current, Serving
from service.rollout.shelf import BundleShelf

POLL_S = 0.1
NEXT_TTL_MS = 15_000  # renewed while whoever announced it waits
FOLLOWED_S = 3.0  # longest wait for all replicas to follow an experiment that has begun

# KEYS: next bundle, running experiment. ARGV: bundle_id, announcement, how long it stands in ms.
_ANNOUNCE = """
local experiment = redis.call('GET', KEYS[2])
if experiment and cjson.decode(experiment)['b'] ~= ARGV[1] then return 'experiment' end
return redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3]) and 'done' or 'busy'
"""

State = Literal["idle", "opening", "waiting", "carrying", "done", "failed"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activation:
    """How the last change that this replica was asked for stands.

    Attributes:
        experiment_id: of the experiment that is to begin; empty for an activation.
    """

    bundle_id: str = ""
    state: State = "idle"
    detail: str = "nothing was activated here yet"
    experiment_id: str = ""


class Activator:
    """Makes such changes when asked to, one at a time.

    Args:
        current: what requests get.
        follower: how the replicas stand.
        beside: what is open beside the current bundle.
        shelf: where bundles are.
        timeout_s: longest time for a bundle to be opened and its engine to be started.
    """

    def __init__(
        self, current: Current, follower: Follower, beside: Beside, shelf: BundleShelf, *, timeout_s: float
    ) -> None:
        self.activation = Activation()
        self._current = current
        self._follower = follower
        self._beside = beside
        self._shelf = shelf
        self._timeout_s = timeout_s
        self._request: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop."""
        while self._request is not None and not self._request.done():
            self._request.cancel()
            await asyncio.wait({self._request}, timeout=1)

    def activate(self, bundle_id: str) -> None:
        """Begin to switch all replicas to a bundle; `activation` says how it goes. Ends an experiment
        whose B it is.

        Raises:
            NotFound: it is not on this machine.
            ActivationConflict: another change is going on, or it is active already.
            ExperimentConflict: an experiment with another bundle is running.
            CatalogueError: Redis is away.
        """
        self._shelf.find(bundle_id)
        if bundle_id == self._current.serving.bundle_id:
            raise ActivationConflict(f"bundle {bundle_id} is active already")
        experiment = self._follower.experiment
        if experiment is not None and experiment.b != bundle_id:
            raise ExperimentConflict(_running(experiment))
        self._begin(Activation(bundle_id), self._move)

    def start_experiment(self, experiment: Experiment) -> None:
        """Begin to serve B to its share of the users; `activation` says how it goes.

        Raises:
            NotFound: B is not on this machine.
            ActivationConflict: another change is going on.
            ExperimentConflict: an experiment is running, or B is the active bundle.
            CatalogueError: Redis is away.
        """
        self._shelf.find(experiment.b)
        if experiment.b == self._current.serving.bundle_id:
            raise ExperimentConflict(f"bundle {experiment.b} is the active one; try another one against it")
        if self._follower.experiment is not None:
            raise ExperimentConflict(_running(self._follower.experiment))
        about = Activation(experiment.b, experiment_id=experiment.experiment_id)
        self._begin(about, partial(self._start, experiment))

    async def finished(self, timeout_s: float) -> Activation:
        """Wait for the change that is going on, but not longer than this."""
        if self._request is not None:
            await asyncio.wait({self._request}, timeout=timeout_s)
        return self.activation

    def _begin(self, about: Activation, last_step: Callable[[Serving], Awaitable[None]]) -> None:
        if self._request is not None and not self._request.done():
            raise ActivationConflict(f"bundle {self.activation.bundle_id} is being opened; wait for it")
        if self._current.client is None:
            raise CatalogueError("Redis is away, so no bundle can be activated now")
        self.activation = about
        self._say("opening", "the bundle is opened beside the active one")
        self._request = asyncio.create_task(self._change(about.bundle_id, last_step), name="activation")

    async def _change(self, bundle_id: str, last_step: Callable[[Serving], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._announce(bundle_id)
                await self._everybody_ready(bundle_id)
                self._say("carrying", "changes are carried over")
                serving = self._beside.serving
                assert serving is not None
                await last_step(serving)
        except TimeoutError:
            await self._give_up(f"it was not ready within {self._timeout_s:g} s")
        except (GtirecError, *REDIS_FAILURES) as error:
            await self._give_up(str(error) if isinstance(error, GtirecError) else type(error).__name__)
        except Exception as error:
            log.exception("activating bundle %s failed", bundle_id)
            await self._give_up(f"a bug in the service ({type(error).__name__})")

    async def _move(self, serving: Serving) -> None:
        old = self._current.serving
        pointer = self._follower.pointer(serving.bundle_id, old.bundle_id)
        await take_over(self._follower.client, old.bundle_id, serving.catalogue, pointer)
        await self._current.other_than(old)
        self._say("done", "all replicas that are alive switch to it now")

    async def _start(self, experiment: Experiment, serving: Serving) -> None:
        client = self._follower.client
        await client.delete(serving.catalogue.log.keys.mirrored)  # whatever it agreed with, look at all of it
        await mirror(client, self._current.serving.catalogue.log, serving.catalogue)
        await experiments.start(client, experiment)
        with contextlib.suppress(TimeoutError):  # it has begun; a replica that is late follows soon
            async with asyncio.timeout(FOLLOWED_S):
                while any(
                    says.get("experiment") != experiment.experiment_id
                    for says in self._follower.replicas.values()
                ):
                    await asyncio.sleep(POLL_S / 2)
        self._say("done", f"{100 * experiment.share:g} % of the users get it now")

    async def _announce(self, bundle_id: str) -> None:
        value = json.dumps({"bundle_id": bundle_id, "owner": self._follower.name})
        names = [keys.NEXT_BUNDLE, keys.EXPERIMENT]
        said = await self._follower.client.eval(
            _ANNOUNCE, len(names), *names, bundle_id, value, str(NEXT_TTL_MS)
        )
        if said == b"busy":
            raise ActivationConflict("another replica is activating a bundle; wait for it")
        if said == b"experiment":
            raise ExperimentConflict("an experiment with another bundle is running; stop it first")

    async def _everybody_ready(self, bundle_id: str) -> None:
        """Renew the announcement until every replica that is alive has the bundle open beside."""
        client = self._follower.client
        while True:
            await client.pexpire(keys.NEXT_BUNDLE, NEXT_TTL_MS)
            replicas = self._follower.replicas
            for name, says in replicas.items():
                if says["next"] == bundle_id and says["problem"]:
                    raise CatalogueError(f"replica {name} cannot serve it: {says['problem']}")
            late = [name for name, says in replicas.items() if says["standby"] != bundle_id]
            if self._beside.ready_id == bundle_id and replicas and not late:
                return
            self._say("waiting", f"{len(late)} of {len(replicas)} replicas are not ready yet")
            await asyncio.sleep(POLL_S)

    async def _give_up(self, reason: str) -> None:
        self._say("failed", f"{reason}; the bundle before stays active")
        log.error("bundle %s was not activated: %s", self.activation.bundle_id, reason)
        client = self._follower.client
        try:
            raw = await client.get(keys.NEXT_BUNDLE)
            if raw and json.loads(raw)["owner"] == self._follower.name:
                await client.delete(keys.NEXT_BUNDLE)
        except REDIS_FAILURES:
            log.warning("the announcement of bundle %s expires by itself", self.activation.bundle_id)

    def _say(self, state: State, detail: str) -> None:
        self.activation = replace(self.activation, state=state, detail=detail)


def _running(experiment: Experiment) -> str:
    return (
        f"experiment {experiment.experiment_id} with bundle {experiment.b} is running; stop it first, or "
        "promote its bundle"
    )
