"""Runs the app in one uvicorn process: one engine per process, more of both by more replicas.

SIGTERM: readiness fails at once; requests are answered for `drain_delay_s` more, so that load balancers
notice; then what is new gets 503 with Retry-After, until what is in flight is done; the port closes, the
engine and the private Redis stop; exit code 0.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from service.app import create_app
from service.engine.protocol import Engine
from service.garbage import freeze_what_stays
from service.settings import Settings

FATAL_EXIT_CODE = 1
LAST_ANSWERS_S = 1
HARD_STOP_S = 10.0  # beyond the graceful time, for threads that do not end

log = logging.getLogger(__name__)


def raise_file_limit() -> None:
    """Take as many open files as the system grants: every connection is one, and shells start with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Server(uvicorn.Server):
    """uvicorn with a drain before the shutdown, and an exit code.

    Args:
        settings: the service's configuration.
        make_engine: see `create_app`.

    Raises:
        GtirecError: from `create_app`.
    """

    def __init__(self, settings: Settings, *, make_engine: Callable[[], Engine] | None = None) -> None:
        raise_file_limit()
        app = create_app(settings, make_engine=make_engine, on_fatal=self.fail)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,  # the middleware writes one line per request
            timeout_graceful_shutdown=LAST_ANSWERS_S,  # requests have finished by then, see Drain
            server_header=False,
        )
        super().__init__(config)
        self.exit_code = 0
        self._settings = settings
        self._services = app.state.services
        self._freezing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port."""
        await super().startup(sockets)
        self._freezing = asyncio.create_task(freeze_what_stays(self._services.current), name="garbage")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on SIGTERM, stop on SIGINT, stop harder on a second signal."""
        if self._services.drain.is_draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
            return
        delay_s = self._settings.drain_delay_s if sig == signal.SIGTERM else 0.0
        self._stop(delay_s, self.exit_code)

    def fail(self, reason: str) -> None:
        """The engine was given up: exit non-zero, so that whatever supervises this process restarts it."""
        log.critical("exiting with code %d: %s", FATAL_EXIT_CODE, reason)
        self.exit_code = FATAL_EXIT_CODE
        self._stop(0.0, FATAL_EXIT_CODE)

    def _stop(self, delay_s: float, exit_code: int) -> None:
        self._services.drain.begin()
        grace_s = 5.0 if exit_code else self._settings.shutdown_timeout_s
        threading.Thread(target=self._drain, args=(delay_s, grace_s), daemon=True).start()
        _later(delay_s + grace_s + HARD_STOP_S, lambda: os._exit(exit_code or FATAL_EXIT_CODE))

    def _drain(self, delay_s: float, grace_s: float) -> None:
        """In a thread: a signal handler must not wait."""
        self._services.drain.finish(delay_s, grace_s)
        self.should_exit = True


def _later(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
