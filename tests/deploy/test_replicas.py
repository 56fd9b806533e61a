"""Three replicas of the real process over one Redis, behind a balancer: killed, cut off, updated."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from service.client import AsyncClient

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
# `python -m service` with the tests' engine: three real models would not fit into two cores' time.
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import FakeEngine
from service.bundle import load_bundle
from service.server import Server
from service.settings import Settings

settings = Settings()
bundle = load_bundle(settings.bundle)
server = Server(settings, make_engine=lambda: FakeEngine(bundle, delay_s=0.02))
server.run()
sys.exit(server.exit_code)
"""


class Relay:
    """Forwards TCP connections to the first of several targets that accepts, starting with the next in turn.

    As the balancer its targets are the replicas; as a replica's way to Redis it can be cut.
    """

    def __init__(self, connect: list[Callable[[], Any]]) -> None:
        self._connect = connect
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_cut = False
        self.port = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def cut(self) -> None:
        """Drop every connection and refuse new ones."""
        self.is_cut = True
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            other = await self._open()
            if other is not None and not self.is_cut:
                copies = self._copy(reader, other[1]), self._copy(other[0], writer)
                await asyncio.gather(*copies, return_exceptions=True)  # a reset ends it like a close
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _open(self) -> Any:
        self._turn += 1
        for number in range(len(self._connect)):
            with contextlib.suppress(OSError):
                return await self._connect[(self._turn + number) % len(self._connect)]()
        return None

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


class Replica:
    """One process, with its own way to Redis."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, way: Relay) -> None:
        self.process = process
        self.port = port
        self.way = way
        self.client = AsyncClient(f"http://127.0.0.1:{port}", deadline_s=60)


@contextlib.asynccontextmanager
async def running(bundle: Path, redis_socket: str, folder: Path) -> AsyncIterator[tuple[list[Replica], str]]:
    """Three ready replicas, and the balancer's URL."""
    replicas: list[Replica] = []
    async with contextlib.AsyncExitStack() as stack:
        for number in range(3):
            way = Relay([lambda: asyncio.open_unix_connection(redis_socket)])
            server = await way.start()
            stack.callback(server.close)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            environment = {
                **os.environ,
                "GTIREC_BUNDLE": str(bundle),
                "GTIREC_PORT": str(port),
                "GTIREC_REDIS_URL": f"redis://127.0.0.1:{way.port}/0",
                "GTIREC_DATA_DIR": str(folder / str(number)),
                "GTIREC_ALLOW_ANONYMOUS": "true",
            }
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(REPOSITORY / "tests")], env=environment, cwd=REPOSITORY
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            replicas.append(Replica(process, port, way))
            stack.push_async_callback(replicas[-1].client.close)
        balancer = Relay([_connector(replica.port) for replica in replicas])
        stack.callback((await balancer.start()).close)
        for replica in replicas:
            await until(lambda replica=replica: _state(replica), "ready", timeout_s=120)
        yield replicas, f"http://127.0.0.1:{balancer.port}"


def _connector(port: int) -> Callable[[], Any]:
    return lambda: asyncio.open_connection("127.0.0.1", port)


async def _state(replica: Replica) -> str:
    try:
        if not (await replica.client.readiness()).ready:
            return "not ready"
        return (await replica.client.info()).catalogue
    except Exception as error:
        return f"away ({error})"


async def until(ask: Callable[[], Any], wanted: Any, timeout_s: float = 30) -> float:
    """Ask until the answer is the wanted one; returns the seconds that took."""
    found, began = None, time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while (found := await ask()) != wanted:
                await asyncio.sleep(0.02)
    assert found == wanted
    return time.monotonic() - began


@pytest.fixture
def redis_socket(clean_redis: Any) -> str:
    """Path of the server's unix socket."""
    return clean_redis.url.removeprefix("unix://")


@pytest.mark.anyio
async def test_a_killed_replica_costs_no_request(
    small_bundle_dir: Path, redis_socket: str, tmp_path: Path
) -> None:
    async with running(small_bundle_dir, redis_socket, tmp_path) as (replicas, url):
        clients = [AsyncClient(url, deadline_s=60) for _ in range(8)]

        async def ask(client: AsyncClient, number: int) -> int:
            answer = await client.recommend(history=[f"item-{number % 30}"], k=3)
            return len(answer.items)

        async def load(client: AsyncClient) -> list[int]:
            return [await ask(client, number) for number in range(40)]

        began = time.monotonic()
        tasks = [asyncio.create_task(load(client)) for client in clients]
        await asyncio.sleep(0.5)
        replicas[0].process.send_signal(signal.SIGKILL)
        answers = [number for task in tasks for number in await task]
        assert answers == [3] * (8 * 40)
        print(f"{len(answers)} requests in {time.monotonic() - began:.1f} s, one of three replicas killed")
        assert replicas[0].process.wait(10) == -signal.SIGKILL
        for client in clients:
            await client.close()


@pytest.mark.anyio
async def test_an_update_reaches_every_replica_and_one_that_was_cut_off_catches_up(
    small_bundle_dir: Path, redis_socket: str, tmp_path: Path
) -> None:
    async with running(small_bundle_dir, redis_socket, tmp_path) as (replicas, _):

        async def recommended(replica: Replica) -> set[str]:
            answer = await replica.client.recommend(history=["item-5"], k=40)
            return {item.item_id for item in answer.items}

        async def versions(some: list[Replica]) -> list[int]:
            return [(await replica.client.info()).catalogue_version for replica in some]

        for replica in replicas:
            assert "item-7" in await recommended(replica)
        first = (await replicas[0].client.delete_item("item-7")).catalogue_version
        seconds = await until(lambda: versions(replicas), [first] * 3)
        print(f"a deleted item was gone from three replicas {seconds:.2f} s after the answer to DELETE")
        for replica in replicas:
            assert "item-7" not in await recommended(replica)

        cut_off = replicas[2]
        cut_off.way.cut()
        await until(lambda: _state(cut_off), "down")
        second = (await replicas[0].client.delete_item("item-8")).catalogue_version
        await until(lambda: versions(replicas[:2]), [second] * 2)
        stale = await cut_off.client.recommend(history=["item-5"], k=40)
        assert stale.degraded  # it goes on answering, and says so
        assert "item-8" in {item.item_id for item in stale.items}

        cut_off.way.is_cut = False
        seconds = await until(lambda: _state(cut_off), "ready") + await until(
            lambda: versions([cut_off]), [second]
        )
        print(f"a replica that was cut from Redis had caught up {seconds:.2f} s after it could reach it")
        assert "item-8" not in await recommended(cut_off)
