"""Keeps an engine running: starts it, tests it, notices its death, rebuilds it, or gives up.

While there is no engine, requests fail at once with `EngineDead`. Three things count as death: the
engine says so (`is_alive`, `EngineDead`), a test request is answered wrongly, or nothing at all is
finished for `canary_timeout_s`. An engine that keeps dying is given up, so that the process can exit
and be started afresh by whatever supervises it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.decoding.search_space import NUM_KEPT
from service.engine.protocol import Beams, DecodeRequest, Engine
from service.errors import EngineDead, EngineError, StaleCatalogue
from service.observability import metrics

POLL_S = 0.2
HEALTHY_S = 60.0  # an engine that lived this long starts with a clean record
FIRST_BACKOFF_S = 0.5
CLOSE_TIMEOUT_S = 15.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisorLimits:
    """When the supervisor loses patience; see the settings of the same names."""

    start_timeout_s: float = 600.0
    give_up_s: float = 45.0
    canary_interval_s: float = 10.0
    canary_timeout_s: float = 30.0


class EngineSupervisor:
    """Stands before an engine and answers for it.

    Args:
        factory: makes a fresh, unstarted engine.
        canary: tests a started engine that should decode with a catalogue directory (None: the
            bundle's); raises if the answer is wrong.
        limits: patience.
        on_give_up: called once, with a sentence, when rebuilding has failed for too long or the very
            first start fails.

    Attributes:
        variant: what its metrics are counted under.
    """

    def __init__(
        self,
        factory: Callable[[], Engine],
        canary: Callable[[Engine, Path | None], Awaitable[None]],
        limits: SupervisorLimits,
        on_give_up: Callable[[str], None],
    ) -> None:
        self._factory = factory
        self._canary = canary
        self._limits = limits
        self._on_give_up = on_give_up
        self._engine: Engine | None = None
        self._tasks: set[asyncio.Task[Beams]] = set()
        self._death: asyncio.Event = asyncio.Event()
        self._changing = asyncio.Lock()  # the catalogue is exchanged, or an engine catches up with it
        self._task: asyncio.Task[None] | None = None
        self._last_success = 0.0
        self._has_started = False
        self._trouble_since: float | None = None
        self._catalogue: Path | None = None  # exchanged since the start; a rebuilt engine gets it too
        self._hidden: dict[str, np.ndarray] = {}
        self.variant = ""
        self.name = "none yet"
        self.detail = "the engine is being started"
        self.num_rebuilds = 0

    @property
    def is_ready(self) -> bool:
        """True while an engine that passed its test is alive."""
        return self._engine is not None and self._engine.is_alive

    def start(self) -> None:
        """Begin in the background."""
        self._task = asyncio.create_task(self._run(), name="engine-supervisor")

    async def close(self) -> None:
        """Stop supervising and close the engine. Idempotent."""
        if self._task is not None:
            while not self._task.done():  # an engine may swallow one cancellation
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=CLOSE_TIMEOUT_S + 1)
        self.detail = "the service is shutting down"

    async def decode(self, request: DecodeRequest) -> Beams:
        """As `Engine.decode`.

        Raises:
            EngineDead: at once while there is no engine, and as soon as the engine is lost.
        """
        engine = self._engine
        if engine is None or not engine.is_alive:
            self._death.set()
            metrics.ENGINE_CALLS.labels(outcome="dead", variant=self.variant).inc()
            raise EngineDead(f"no recommendation can be computed now: {self.detail}")
        task = asyncio.create_task(_decode(engine, request))
        self._tasks.add(task)
        outcome = "error"
        try:
            beams = await task
            self._last_success = time.monotonic()
            self._check(beams)
            outcome = "ok"
            return beams
        except EngineDead:
            outcome = "dead"
            self._death.set()
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise  # the caller gave up, not we
            raise EngineDead("the engine was lost while it computed this answer") from None
        finally:
            self._tasks.discard(task)
            metrics.ENGINE_CALLS.labels(outcome=outcome, variant=self.variant).inc()

    def _check(self, beams: Beams) -> None:
        """Count what came, and let nothing pass that is no item or comes twice."""
        is_valid = (beams.first_row >= 0) & (beams.first_row < beams.end_row)
        num_valid = int(is_valid.sum())
        num_unique = len(np.unique(beams.first_row[is_valid]))
        kinds = {
            "unique": num_unique,
            "repeated": num_valid - num_unique,
            "invalid": len(is_valid) - num_valid,
        }
        for kind, count in kinds.items():
            metrics.BEAMS.labels(kind=kind, variant=self.variant).inc(count)
        if num_unique < len(is_valid):
            raise EngineError(
                f"the engine returned {len(is_valid) - num_unique} invalid or repeated semantic IDs"
            )

    async def load_catalogue(self, directory: Path) -> None:
        """As `Engine.load_catalogue`. An engine that is being (re)built starts with it."""
        async with self._changing:
            if self.is_ready:
                assert self._engine is not None
                await self._engine.load_catalogue(directory)
            self._catalogue = directory

    async def hide_rows(self, rows: np.ndarray, trie_version: str) -> None:
        """As `Engine.hide_rows`. Remembered for the engines that follow."""
        async with self._changing:
            if self.is_ready:
                assert self._engine is not None
                await self._engine.hide_rows(rows, trie_version)
            self._hidden.pop(trie_version, None)
            self._hidden[trie_version] = rows
            while len(self._hidden) > NUM_KEPT:
                del self._hidden[next(iter(self._hidden))]

    async def _catch_up(self, engine: Engine) -> None:
        """Bring a fresh engine to the catalogue that was in use."""
        if self._catalogue is not None:
            await engine.load_catalogue(self._catalogue)
        for trie_version, rows in self._hidden.items():
            with contextlib.suppress(StaleCatalogue):  # a version that only the engine before held
                await engine.hide_rows(rows, trie_version)

    async def _run(self) -> None:
        engine: Engine | None = None
        try:
            while True:
                engine = await self._build()
                if engine is None:
                    return
                reason = await self._watch(engine)
                log.error("the engine was lost: %s", reason)
                self.detail = f"the engine was lost ({reason}) and is being rebuilt"
                await self._discard(engine)
                engine = None
                if self._is_out_of_patience():
                    self.detail = f"the engine keeps dying: {reason}"
                    self._on_give_up(self.detail)
                    return
                metrics.ENGINE_REBUILDS.labels(variant=self.variant).inc()
                self.num_rebuilds += 1
        finally:
            if engine is not None:
                await self._discard(engine)

    async def _build(self) -> Engine | None:
        """A started and tested engine, or None after giving up."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            engine: Engine | None = None
            started = time.monotonic()
            try:
                engine = self._factory()
                async with asyncio.timeout(self._patience_s()):
                    await engine.start()
                    async with self._changing:
                        await self._catch_up(engine)
                        await self._canary(engine, self._catalogue)
                        self._install(engine, time.monotonic() - started)
            except BaseException as error:
                if engine is not None:
                    await self._discard(engine)
                if not isinstance(error, Exception):
                    raise
                if self._gives_up(error):
                    return None
                await asyncio.sleep(backoff_s)
                backoff_s *= 2
                continue
            return engine

    def _install(self, engine: Engine, seconds: float) -> None:
        self._has_started = True
        self._death.clear()
        self._last_success = time.monotonic()
        self.name = engine.name
        self.detail = f"{engine.name} is answering; it started in {seconds:.1f} s"
        self._engine = engine
        log.info("engine %s is ready after %.1f s", engine.name, seconds)

    def _patience_s(self) -> float:
        """Seconds this start may take; a rebuild gets what is left of the budget."""
        if not self._has_started or self._trouble_since is None:
            return self._limits.start_timeout_s
        return max(1.0, self._limits.give_up_s - (time.monotonic() - self._trouble_since))

    def _gives_up(self, error: Exception) -> bool:
        """Whether a failed start was the last one; reports it if so."""
        sentence = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        if isinstance(error, TimeoutError):
            sentence = "it did not start in time"
        self.detail = f"the engine cannot be started: {sentence}"
        if self._has_started and not self._is_out_of_patience():
            log.error("%s; trying again", self.detail)
            return False
        log.critical("%s; giving up", self.detail, exc_info=None if isinstance(error, EngineError) else error)
        self._on_give_up(self.detail)
        return True

    def _is_out_of_patience(self) -> bool:
        since = self._trouble_since
        return since is not None and time.monotonic() - since > self._limits.give_up_s

    async def _watch(self, engine: Engine) -> str:
        """Returns why the engine counts as dead, once it does."""
        installed = time.monotonic()
        death = asyncio.create_task(self._death.wait())
        canaries = asyncio.create_task(self._run_canaries(engine))
        try:
            while True:
                done, _ = await asyncio.wait(
                    {death, canaries}, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED
                )
                if canaries in done:
                    reason = canaries.result()
                elif death in done or not engine.is_alive:
                    reason = "its process is gone"
                else:
                    continue
                break
        finally:
            death.cancel()
            canaries.cancel()
        now = time.monotonic()
        if self._trouble_since is None or now - installed > HEALTHY_S:
            self._trouble_since = now
        return reason

    async def _run_canaries(self, engine: Engine) -> str:
        """Test the engine whenever it has been idle; returns what was wrong."""
        while True:
            idle_s = time.monotonic() - self._last_success
            if idle_s < self._limits.canary_interval_s:
                await asyncio.sleep(self._limits.canary_interval_s - idle_s)
                continue
            try:
                async with asyncio.timeout(self._limits.canary_timeout_s):
                    await self._canary(engine, self._catalogue)
                self._last_success = time.monotonic()
            except TimeoutError:
                # A full queue can delay the test; only an engine that finished nothing else is hung.
                if time.monotonic() - self._last_success >= self._limits.canary_timeout_s:
                    return f"it finished nothing for {self._limits.canary_timeout_s:g} s"
            except Exception as error:
                return f"its test request failed: {error}"

    async def _discard(self, engine: Engine) -> None:
        """Fail what is in flight, then close."""
        self._engine = None
        for task in list(self._tasks):
            task.cancel()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await engine.close()
        except Exception:
            log.exception("the lost engine could not be closed; its processes may linger")


async def _decode(engine: Engine, request: DecodeRequest) -> Beams:
    return await engine.decode(request)
