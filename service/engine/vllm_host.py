"""One AsyncLLM and its processes: started without blocking, never hung on, gone when closed.

vLLM's engine runs in child processes (an engine core, and on a CPU a worker below it). This file
owns their life: requests fail the moment they die, and `close` leaves none of them behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import psutil
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from service.errors import CatalogueError, EngineDead, EngineError

POLL_S = 0.05
ABORT_S = 1.0  # how long a given-up request may take to tell the engine so
KILLED_S = 2.0  # how long killed processes may take to vanish

logger = logging.getLogger(__name__)
T = TypeVar("T")


class VllmHost:
    """Starts, watches and ends one AsyncLLM.

    Args:
        arguments: engine arguments, see vllm_arguments.py.
        shutdown_timeout_s: seconds the processes get to end before they are killed.
    """

    def __init__(self, arguments: dict[str, Any], *, shutdown_timeout_s: float) -> None:
        self._arguments = arguments
        self._shutdown_timeout_s = shutdown_timeout_s
        self._client: AsyncLLM | None = None
        self._processes: list[psutil.Process] = []
        self._death: asyncio.Future[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the processes; returns when the model is loaded.

        Raises:
            EngineError: vLLM refused the arguments or its processes failed.
        """
        loop = asyncio.get_running_loop()
        creation = loop.run_in_executor(None, _create, self._arguments)
        try:
            client = await asyncio.shield(creation)
        except asyncio.CancelledError:
            creation.add_done_callback(_discard)  # it cannot be interrupted, only ended when it is there
            raise
        except Exception as error:
            raise EngineError(
                f"vLLM could not start on {self._arguments['model']}: {error}; its log above says why"
            ) from error
        self._client = client
        self._processes = _family(client)
        self._death = loop.create_future()
        self._watcher = asyncio.create_task(self._watch(client, self._death), name="vllm-watcher")

    @property
    def client(self) -> AsyncLLM:
        """The running engine.

        Raises:
            EngineDead: it is not started, died or was closed.
        """
        if self._client is None or not self.is_alive:
            raise EngineDead("vLLM's engine is not running")
        return self._client

    @property
    def is_alive(self) -> bool:
        """False before `start`, after `close`, and once a process of the engine is known to be gone."""
        return self._client is not None and self._death is not None and not self._death.done()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await a request to the engine, but no longer than the engine lives.

        Raises:
            EngineDead: the engine died, at once.
            EngineError: the engine failed on this request.
        """
        death = self._death
        if death is None or not self.is_alive:
            work.close()
            raise EngineDead("vLLM's engine is not running")
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise EngineDead("vLLM's engine process ended while it computed this answer")
            return task.result()
        except EngineDeadError as error:
            self._die()
            raise EngineDead("vLLM's engine process ended") from error
        except (EngineError, asyncio.CancelledError):
            raise
        except VLLMClientError as error:
            raise EngineError(f"vLLM refused the request: {error}") from error
        except Exception as error:
            raise EngineError(f"vLLM failed on the request: {error.__cause__ or error}") from error
        finally:
            if not task.done():
                task.cancel()  # aborts the request in the engine
                await asyncio.wait({task}, timeout=ABORT_S)

    async def ask_workers(self, method: str, *arguments: str | bytes) -> None:
        """Run a method of `CatalogueWorker` in every worker, between two steps.

        Raises:
            EngineDead: the engine died.
            CatalogueError: a worker refused; its sentence.
        """
        answers = await self.run(self.client.collective_rpc(method, args=arguments))
        if problem := next((answer for answer in answers if answer), ""):
            raise CatalogueError(problem)

    async def close(self) -> None:
        """End all processes of the engine. Idempotent."""
        client, self._client = self._client, None
        self._die()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if client is not None:
            if client.output_handler is not None:  # else it logs the end of its connection as an error
                client.output_handler.cancel()
                await asyncio.gather(client.output_handler, return_exceptions=True)
            try:
                await asyncio.to_thread(client.shutdown, timeout=self._shutdown_timeout_s)
            except Exception:
                logger.exception("vLLM did not shut down cleanly")
            await asyncio.to_thread(_end, self._processes, self._shutdown_timeout_s)

    def _die(self) -> None:
        if self._death is not None and not self._death.done():
            self._death.set_result(None)

    async def _watch(self, client: AsyncLLM, death: asyncio.Future[None]) -> None:
        """Notice a death that vLLM has not reported to a request, e.g. while there is none."""
        while not death.done():
            if client.errored or any(_is_gone(process) for process in self._processes):
                logger.error("vLLM's engine process is gone")
                self._die()
                return
            await asyncio.sleep(POLL_S)


def _create(arguments: dict[str, Any]) -> AsyncLLM:
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


def _discard(creation: asyncio.Future[AsyncLLM]) -> None:
    if not creation.cancelled() and creation.exception() is None:
        client = creation.result()
        asyncio.get_running_loop().run_in_executor(None, client.shutdown)


def _family(client: AsyncLLM) -> list[psutil.Process]:
    """The engine's own processes: engine cores and workers."""
    manager = client.engine_core.resources.engine_manager
    family = []
    for core in getattr(manager, "processes", ()):
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(core.pid)
            family += [root, *(p for p in root.children(recursive=True) if not _is_tracker(p))]
    return family


def _is_tracker(process: psutil.Process) -> bool:
    """Python's own helper of `multiprocessing`; it outlives its parent a little and does no harm."""
    with contextlib.suppress(psutil.Error):
        return any("resource_tracker" in part for part in process.cmdline())
    return True


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _end(processes: list[psutil.Process], timeout_s: float) -> None:
    """Wait for processes to end; kill what is left."""
    deadline = time.monotonic() + timeout_s
    while (left := [p for p in processes if not _is_gone(p)]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for process in left:
        logger.warning("killing vLLM process %d, which did not end", process.pid)
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + KILLED_S
    while any(not _is_gone(p) for p in left) and time.monotonic() < deadline:
        time.sleep(POLL_S)
