"""One bundle being served, and which one that is now."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis.asyncio as aioredis

from service.bundle import Bundle
from service.catalogue import Catalogue
from service.engine.supervisor import EngineSupervisor
from service.errors import EngineError
from service.observability import metrics
from service.observability.coverage import Coverage
from service.recommender import Recommender

POLL_S = 0.05


@dataclass(eq=False)
class Serving:
    """A bundle with everything that answers for it.

    Attributes:
        failure: why its engine was given up; empty while there is hope.
        num_requests: requests that hold it.
        coverage: which of its items were recommended lately.
    """

    bundle: Bundle
    catalogue: Catalogue
    engine: EngineSupervisor
    recommender: Recommender
    failure: str = ""
    num_requests: int = field(default=0, init=False)
    coverage: Coverage = field(init=False)

    def __post_init__(self) -> None:
        self.coverage = Coverage(self.bundle.manifest.num_items)

    @property
    def bundle_id(self) -> str:
        """Of the bundle."""
        return self.bundle.bundle_id

    @property
    def is_ready(self) -> bool:
        """The engine passed its test and the catalogue is whole."""
        return self.engine.is_ready and self.catalogue.status.state == "ready"

    @property
    def is_up_to_date(self) -> bool:
        """The decode knows every change to the catalogue."""
        return self.catalogue.snapshot.version == self.catalogue.version

    @property
    def can_answer(self) -> bool:
        """The engine passed its test; a Redis that is away is no reason, memory answers."""
        return self.engine.is_ready and self.catalogue.status.state in ("ready", "down")

    @property
    def coverage_ratio(self) -> float:
        """Share of the items that were recommended in the last hour."""
        snapshot = self.catalogue.snapshot
        num_items = snapshot.num_items - len(snapshot.hidden_rows)
        return min(1.0, self.coverage.num_items() / num_items) if num_items else 0.0

    def show_as(self, variant: str) -> None:
        """Let the metrics of a variant speak of this bundle from now on."""
        self.engine.variant = variant
        metrics.BUNDLE.labels(bundle_id=self.bundle_id, variant=variant).set(1)
        for gauge, value in (
            (metrics.ENGINE_UP, lambda: self.engine.is_ready),
            (metrics.CATALOGUE_UP, lambda: self.catalogue.status.state == "ready"),
            (metrics.CATALOGUE_VERSION, lambda: self.catalogue.version),
            (metrics.COVERAGE, lambda: self.coverage_ratio),
        ):
            gauge.labels(variant=variant).set_function(value)

    def show_no_more(self, variant: str) -> None:
        """It is not served as this variant any more."""
        with contextlib.suppress(KeyError):
            metrics.BUNDLE.remove(self.bundle_id, variant)
        if variant == "a":
            return  # another one took over its gauges
        for gauge in (metrics.ENGINE_UP, metrics.CATALOGUE_UP, metrics.CATALOGUE_VERSION, metrics.COVERAGE):
            with contextlib.suppress(KeyError):
                gauge.remove(variant)

    def start(self) -> None:
        """Begin in the background."""
        self.catalogue.start(self.engine)
        self.engine.start()

    async def ready(self) -> None:
        """Wait until it can answer.

        Raises:
            EngineError: the engine was given up.
        """
        while not self.is_ready:
            if self.failure:
                raise EngineError(self.failure)
            await asyncio.sleep(POLL_S)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it open for a request."""
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

    async def drain(self, timeout_s: float) -> None:
        """Wait for the requests that hold it, but not for ever."""
        give_up_at = asyncio.get_running_loop().time() + timeout_s
        while self.num_requests and asyncio.get_running_loop().time() < give_up_at:
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        """Release the engine and the connection. Idempotent."""
        await self.engine.close()
        await self.catalogue.close()


class Current:
    """Which bundle requests get. What outlives a bundle reaches Redis through it.

    Args:
        serving: the first one.
    """

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self._switched = asyncio.Event()
        serving.show_as("a")

    @property
    def client(self) -> aioredis.Redis | None:
        """See `Catalogue.client`."""
        return self.serving.catalogue.client

    def report_loss(self, error: BaseException) -> None:
        """See `Catalogue.report_loss`."""
        self.serving.catalogue.report_loss(error)

    def switch(self, serving: Serving) -> Serving:
        """Give requests another bundle from now on.

        Returns:
            The one before, which requests may still hold.
        """
        before, self.serving = self.serving, serving
        before.show_no_more("a")
        serving.show_as("a")
        self._switched.set()
        self._switched = asyncio.Event()
        return before

    async def other_than(self, serving: Serving) -> Serving:
        """Wait until another bundle is served."""
        while self.serving is serving:
            await self._switched.wait()
        return self.serving
