"""The one bundle that is open beside the one being served: the next, or the B of an experiment.

Two at once is the bound: each has a model in memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from service.bundle import Bundle
from service.errors import GtirecError
from service.rollout.serving import Serving
from service.rollout.shelf import BundleShelf

RETRY_S = 30.0  # after a bundle could not be opened, or its engine was given up
DRAIN_S = 60.0
VARIANT = "b"  # what its metrics are counted under

log = logging.getLogger(__name__)


class Beside:
    """Opens a bundle, keeps it open, and closes it once nobody holds it.

    Args:
        shelf: where bundles are.
        make_serving: puts an opened bundle together with an unstarted engine.

    Attributes:
        bundle_id: what is wanted here; empty for nothing.
        serving: that bundle, once it is open. Its engine may still be starting.
    """

    def __init__(self, shelf: BundleShelf, make_serving: Callable[[Bundle], Serving]) -> None:
        self.bundle_id = ""
        self.serving: Serving | None = None
        self._shelf = shelf
        self._make_serving = make_serving
        self._problem, self._retry_at = "", 0.0
        self._opening: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """It can be served."""
        return self.serving is not None and self.serving.is_ready

    @property
    def ready_id(self) -> str:
        """The bundle that can be served; empty for none."""
        return self.bundle_id if self.is_ready else ""

    @property
    def problem(self) -> str:
        """Why it cannot be served; empty while there is hope."""
        return self._problem or (self.serving.failure if self.serving is not None else "")

    async def keep(self, bundle_id: str) -> None:
        """Have this bundle open, and no other; empty for none."""
        if bundle_id == self.bundle_id and not self._should_try_again():
            return
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening})
        if (serving := self.take()) is not None:
            self.retire(serving)
        self.bundle_id = bundle_id
        if bundle_id:
            self._opening = asyncio.create_task(self._open(bundle_id), name=f"open-{bundle_id}")

    def take(self) -> Serving | None:
        """Take the bundle out; the caller sees to it from now on."""
        serving = self.serving
        if serving is not None:
            serving.show_no_more(VARIANT)
        self.serving, self.bundle_id, self._problem, self._retry_at = None, "", "", 0.0
        return serving

    def retire(self, serving: Serving) -> None:
        """Close a bundle as soon as the requests that hold it are answered."""

        async def close() -> None:
            await serving.drain(DRAIN_S)
            await serving.close()

        task = asyncio.create_task(close(), name=f"close-{serving.bundle_id}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close everything that is open here, at once."""
        opening = {self._opening} if self._opening is not None else set()
        while pending := [task for task in (*opening, *self._closing) if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=1)
        if (serving := self.take()) is not None:
            await serving.close()

    def _should_try_again(self) -> bool:
        if not self.problem:
            return False
        if not self._retry_at:  # an engine that was given up after it had been ready
            self._retry_at = time.monotonic() + RETRY_S
        return time.monotonic() > self._retry_at

    async def _open(self, bundle_id: str) -> None:
        try:
            bundle = await asyncio.to_thread(self._shelf.open, bundle_id)
            self.serving = self._make_serving(bundle)
            self.serving.show_as(VARIANT)
            self.serving.start()
            await self.serving.ready()
        except (GtirecError, OSError) as error:
            log.error("bundle %s cannot be served here: %s", bundle_id, error)
            self._problem, self._retry_at = str(error), time.monotonic() + RETRY_S
        except Exception as error:
            log.exception("opening bundle %s failed", bundle_id)
            sentence = f"a bug in the service ({type(error).__name__})"
            self._problem, self._retry_at = sentence, time.monotonic() + RETRY_S
