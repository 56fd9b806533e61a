"""A service in a process of its own: its cores, its memory, and when it is ready."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

API_CORE, ENGINE_CORE = 0, 1
READY_S = 600.0


@dataclass(frozen=True)
class Running:
    """A running service."""

    url: str
    pid: int
    process: subprocess.Popen[bytes]

    def engine_pids(self) -> list[int]:
        """Processes of its engine; empty for the torch engine, which is a thread."""
        return [pid for pid, name in children(self.pid) if _is_engine(name)]

    def redis_pids(self) -> list[int]:
        """Its private Redis, if it has one."""
        return [pid for pid, name in children(self.pid) if "redis-server" in name]


@contextmanager
def service(bundle: Path, directory: Path, engine: str, settings: Mapping[str, object]) -> Iterator[Running]:
    """A running service; `settings` without their GTIREC_."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {f"GTIREC_{name.upper()}": str(value) for name, value in settings.items()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **given}
    command = [sys.executable, "-m", "service", "--bundle", str(bundle), "--engine", engine]
    command += ["--port", str(port), "--data-dir", str(directory / "data")]
    with (directory / "service.log").open("a") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
    try:
        yield Running(f"http://127.0.0.1:{port}", process.pid, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pin(pid: int, core: int) -> None:
    """Put all threads of a process on one core."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            os.sched_setaffinity(int(task.name), {core})
        except ProcessLookupError:
            continue


def children(pid: int) -> list[tuple[int, str]]:
    """Descendants of a process with their command lines."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in map(int, task.read_text().split()):
                line = Path(f"/proc/{child}/cmdline").read_bytes()
                found += [(child, line.replace(b"\0", b" ").decode(errors="replace")), *children(child)]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _is_engine(command_line: str) -> bool:
    return "redis" not in command_line and "resource_tracker" not in command_line


def separate(running: Running) -> str:
    """Generator, API and Redis on one core, the engine's processes on the other; says what was done."""
    if (os.cpu_count() or 1) < 2:
        return "one core for everything"
    engines = running.engine_pids()
    pin(os.getpid(), API_CORE)
    if not engines:  # the torch engine is a thread of the API's process
        for task in Path(f"/proc/{running.pid}/task").glob("*"):
            os.sched_setaffinity(int(task.name), {API_CORE, ENGINE_CORE})
        return f"generator on core {API_CORE}; API and engine in one process on both"
    pin(running.pid, API_CORE)
    for child, _ in children(running.pid):
        pin(child, ENGINE_CORE if child in engines else API_CORE)
    return f"generator, API, Redis on core {API_CORE}; engine on core {ENGINE_CORE}"


async def wait_until_ready(session: aiohttp.ClientSession, url: str, timeout_s: float = READY_S) -> None:
    """Returns once /readyz says so."""
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        try:
            async with session.get(f"{url}/readyz") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)
    raise SystemExit("the service did not become ready; see its log")
