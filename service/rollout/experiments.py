"""Experiments as the routes see them: begin, change, end, report; and B for those who should get it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import redis.asyncio as aioredis

from service.catalogue.keeper import REDIS_FAILURES
from service.errors import CatalogueError, NotFound
from service.rollout import experiment as store
from service.rollout.activation import Activator
from service.rollout.beside import Beside
from service.rollout.experiment import Experiment
from service.rollout.follower import Follower
from service.rollout.serving import Current, Serving
from service.rollout.tally import Counts, Tally, read_counts

REST_S = 5.0  # after B hung or broke: not every user should wait to learn it


@dataclass(frozen=True)
class Challenger:
    """B, or why it cannot be had.

    Attributes:
        reason: "missing" (not open here), "engine", "catalogue" (it lags behind) or "resting" (it failed a
            moment ago); empty where `serving` is there.
    """

    serving: Serving | None
    reason: str = ""


class Experiments:
    """What the service does about experiments.

    Args:
        current, follower, beside, activator: see there.
        tally: what answers are counted in.
    """

    def __init__(
        self, current: Current, follower: Follower, beside: Beside, activator: Activator, tally: Tally
    ) -> None:
        self.tally = tally
        self._current = current
        self._follower = follower
        self._beside = beside
        self._activator = activator
        self._rests_until = 0.0

    @property
    def running(self) -> Experiment | None:
        """The experiment that this replica follows."""
        return self._follower.experiment

    @property
    def challenger(self) -> Challenger:
        """B of the running experiment, if it can answer now."""
        experiment, serving = self.running, self._beside.serving
        if experiment is None or serving is None or serving.bundle_id != experiment.b:
            return Challenger(None, "missing")
        if not serving.can_answer:
            return Challenger(None, "engine")
        if not self._follower.mirror.is_fresh:
            return Challenger(None, "catalogue")
        if time.monotonic() < self._rests_until:
            return Challenger(None, "resting")
        return Challenger(serving)

    def rest(self) -> None:
        """B failed in a way that costs time; do not ask it for a moment."""
        self._rests_until = time.monotonic() + REST_S

    def start(self, name: str, bundle_id: str, share: float) -> Experiment:
        """Begin one; see `Activator.start_experiment`."""
        experiment = Experiment.new(name, self._current.serving.bundle_id, bundle_id, share)
        self._activator.start_experiment(experiment)
        return experiment

    async def stop(self, experiment_id: str) -> None:
        """End it: everybody gets A. Requests that B has begun to answer are answered by B.

        Raises:
            NotFound: it is not running.
            CatalogueError: Redis is away.
        """
        try:
            await store.stop(self._client(), experiment_id)
        except REDIS_FAILURES as error:
            raise self._lost(error) from error

    async def change_share(self, experiment_id: str, share: float) -> None:
        """Give B another share.

        Raises:
            NotFound: it is not running.
            CatalogueError: Redis is away.
        """
        try:
            await store.change_share(self._client(), experiment_id, share)
        except REDIS_FAILURES as error:
            raise self._lost(error) from error

    def promote(self, experiment_id: str) -> None:
        """Begin to make B the active bundle, which ends the experiment; see `Activator.activate`.

        Raises:
            NotFound: it is not running.
        """
        experiment = self.running
        if experiment is None or experiment.experiment_id != experiment_id:
            raise NotFound(f"no experiment {experiment_id} is running")
        self._activator.activate(experiment.b)

    async def all(self) -> list[Experiment]:
        """The newest ones, newest first; the running one among them.

        Raises:
            CatalogueError: Redis is away.
        """
        try:
            return await store.read_all(self._client())
        except REDIS_FAILURES as error:
            raise self._lost(error) from error

    async def counts(self, experiment_id: str) -> Counts:
        """What all replicas have counted, this one up to now.

        Raises:
            CatalogueError: Redis is away.
        """
        client = self._client()
        try:
            await self.tally.flush(client)
            return await read_counts(client, experiment_id)
        except REDIS_FAILURES as error:
            raise self._lost(error) from error

    def _client(self) -> aioredis.Redis:
        if (client := self._current.client) is None:
            raise CatalogueError("Redis is away, where experiments are kept; come back in a moment")
        return client

    def _lost(self, error: BaseException) -> CatalogueError:
        self._current.report_loss(error)
        return CatalogueError("Redis was lost, where experiments are kept; come back in a moment")
