"""The service as a child process, and requests to it over HTTP with nothing but the standard library."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from training.errors import TrainingError

_STOP_TIMEOUT_S = 45.0
_POLL_S = 0.25


class DemoError(TrainingError):
    """The demo cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Reply:
    """What the service answered.

    Attributes:
        status: HTTP status.
        body: the JSON value; the text itself where it is no JSON.
    """

    status: int
    body: Any


class Http(Protocol):
    """What asks the service: `ServiceProcess`, or a stand-in in tests."""

    def get(self, path: str) -> Reply: ...

    def post(self, path: str, body: Any) -> Reply: ...


class ServiceProcess:
    """Runs `python -m service` on a bundle and talks to it.

    Args:
        bundle: the bundle's directory.
        port: port on 127.0.0.1.
        work_dir: directory for the service's own data and its log.
    """

    def __init__(self, bundle: Path, *, port: int, work_dir: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = work_dir / "service.log"
        self._command = [sys.executable, "-m", "service", "serve", "--bundle", str(bundle)]
        self._command += ["--host", "127.0.0.1", "--port", str(port)]
        self._command += ["--data-dir", str(work_dir / "service_data"), "--log-format", "text"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, in a session of its own: a Ctrl-C reaches the demo alone, which stops the service."""
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_until_ready(self, timeout_s: float) -> None:
        """Block until `/readyz` says yes.

        Raises:
            DemoError: the process ended or did not get ready; the end of its log is in the message.
        """
        give_up_at = time.monotonic() + timeout_s
        reasons = "nothing answers yet"
        while time.monotonic() < give_up_at:
            self.raise_if_ended()
            try:
                reply = self.get("/readyz")
                if reply.status == 200:
                    return
                reasons = str(reply.body)
            except OSError:
                pass  # the port is not open yet
            time.sleep(_POLL_S)
        raise DemoError(
            f"the service was not ready after {timeout_s:.0f} s ({reasons})\n{self._end_of_log()}"
        )

    def raise_if_ended(self) -> None:
        """Raises DemoError if the process is gone."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise DemoError(f"the service ended with exit code {code}\n{self._end_of_log()}")

    def stop(self) -> int:
        """Ask it to end, wait, and return its exit code. Idempotent; 0 if it never ran."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            return -signal.SIGKILL

    def get(self, path: str) -> Reply:
        """GET. Raises OSError if nothing answers."""
        return self._ask(urllib.request.Request(self.url + path))  # noqa: S310 - our own URL

    def post(self, path: str, body: Any) -> Reply:
        """POST a JSON body. Raises OSError if nothing answers."""
        request = urllib.request.Request(  # noqa: S310 - our own URL
            self.url + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        return self._ask(request)

    def _ask(self, request: urllib.request.Request) -> Reply:
        if key := os.environ.get("GTIREC_API_KEY"):
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - our own URL
                return Reply(answer.status, _json_or_text(answer.read()))
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, _json_or_text(error.read()))

    def _end_of_log(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"the end of {self.log_path}:", *(f"  {line}" for line in lines)])


def _json_or_text(data: bytes) -> Any:
    text = data.decode(errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text
