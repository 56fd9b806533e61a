"""The process: starts, drains on SIGTERM, exits non-zero when its engine cannot be brought back."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# A service as `python -m service` runs it, but with the tests' engine. A history of item-13 kills it.
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import FakeEngine
from service.bundle import load_bundle
from service.observability import logs
from service.server import Server
from service.settings import Settings

settings = Settings()
logs.configure(settings.log_level, settings.log_format)
bundle = load_bundle(settings.bundle)
deadly = bundle.manifest.tokens_of(bundle.semantic_ids[bundle.row_of["item-13"]]).tolist()
made = []

class Engine(FakeEngine):
    async def decode(self, request):
        if list(request.prompt_token_ids[-3:]) == deadly:
            self.kill()
        return await super().decode(request)

def make():
    made.append(Engine(bundle, delay_s=float(sys.argv[2])))
    if len(made) > 1:
        made[-1].start_error = RuntimeError("no device")
    return made[-1]

server = Server(settings, make_engine=make)
server.run()
sys.exit(server.exit_code)
"""


class Process:
    """A running service and a small client for it."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}"

    def status(self, path: str, body: dict | None = None) -> int:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def until(self, path: str, status: int, timeout_s: float = 30.0) -> None:
        give_up_at = time.monotonic() + timeout_s
        while self.status(path) != status:
            assert time.monotonic() < give_up_at and self.process.poll() is None, path
            time.sleep(0.02)


@contextlib.contextmanager
def running(
    bundle: Path,
    data_dir: Path,
    *,
    delay_s: float = 0.0,
    variables: dict[str, str] | None = None,
    **settings: object,
) -> Iterator[Process]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"bundle": bundle, "data_dir": data_dir, "port": port, **settings}
    environment = {f"GTIREC_{name.upper()}": str(value) for name, value in values.items()}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(REPOSITORY / "tests"), str(delay_s)],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **(variables or {}), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Process(process, port)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _needs_redis(redis_server):
    """Skips where no Redis server can be started."""


def test_sigterm_fails_readiness_first_then_finishes_what_is_in_flight(small_bundle_dir, tmp_path):
    with running(small_bundle_dir, tmp_path, delay_s=1.5, drain_delay_s=0.6) as service:
        service.until("/livez", 200)
        assert service.status("/readyz") == 503  # the canary takes 1.5 s
        service.until("/readyz", 200)
        answers: list[int] = []
        body = {"history": ["item-1"]}
        asking = threading.Thread(target=lambda: answers.append(service.status("/recommend", body)))
        asking.start()
        time.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        service.until("/readyz", 503)  # still answered: the port is open while load balancers notice
        asking.join()
        assert answers == [200]
        _, log = service.process.communicate(timeout=15)
        assert service.process.returncode == 0, log
        assert service.status("/livez") == 0
        lines = [json.loads(line) for line in log.splitlines()]
        assert any(line["message"] == "request" and line["status"] == 200 for line in lines)
        assert not any(line["level"] in ("error", "critical") for line in lines), log
    assert not (tmp_path / "redis" / "redis.sock").exists()  # the private server went too


def test_while_the_last_answer_is_computed_new_requests_get_503_and_retry_after(small_bundle_dir, tmp_path):
    with running(small_bundle_dir, tmp_path, delay_s=3, drain_delay_s=0.2) as service:
        service.until("/readyz", 200)
        body = {"history": ["item-1"]}
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(service.status("/recommend", body)))
        asking.start()
        time.sleep(0.5)
        service.process.send_signal(signal.SIGTERM)
        service.until("/items", 503)
        request = urllib.request.Request(service._url + "/recommend", data=json.dumps(body).encode())
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        assert refused.value.code == 503 and int(refused.value.headers["Retry-After"]) >= 1
        assert json.load(refused.value)["error_type"] == "shutting_down"
        assert not answers  # the one in flight is still being computed
        assert service.status("/readyz") == 503 and service.status("/livez") == 200
        asking.join()
        assert answers == [200]
        _, log = service.process.communicate(timeout=15)
        assert service.process.returncode == 0, log


def test_an_engine_that_cannot_be_brought_back_ends_the_process(small_bundle_dir, tmp_path):
    with running(small_bundle_dir, tmp_path, engine_give_up_s=1) as service:
        service.until("/readyz", 200)
        started = time.monotonic()
        assert service.status("/recommend", {"history": ["item-13"]}) == 200  # popular items
        assert service.status("/recommend", {"history": ["item-1"]}) in (200, 0)
        assert time.monotonic() - started < 1
        _, log = service.process.communicate(timeout=20)
        assert service.process.returncode == 1
        assert "no device" in log and "exiting with code 1" in log


def test_a_model_that_cannot_be_loaded_ends_the_process_with_a_sentence(small_bundle_dir, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "service", "--bundle", str(small_bundle_dir), "--engine", "torch",
         "--port", "0", "--data-dir", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the engine cannot be started" in done.stderr


def test_catalogue_can_be_loaded_beforehand_and_pruned(small_bundle_dir, tmp_path):
    def command(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "service", "catalogue", *arguments],
            cwd=REPOSITORY, env={"PATH": "/usr/bin:/bin", "GTIREC_DATA_DIR": str(tmp_path)},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip

    first = command("load", "--bundle", str(small_bundle_dir))
    assert " 40 " in first and " no " in first
    assert " yes " in command("load", "--bundle", str(small_bundle_dir))
    assert command("prune").startswith("0 deleted")
