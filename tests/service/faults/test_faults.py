"""Faults that are really brought about: killed and stopped processes, a jumping clock, clients that dawdle.

What is killed elsewhere: the engine and its worker (engine/test_vllm_processes.py, engine/
test_supervisor.py), Redis (api/test_events.py, catalogue/), a primary under Sentinels (test_sentinel.py);
damaged bundles and tries: bundle/test_bundle.py, decoding/test_search_space.py. How long it all takes:
`python benchmarks/service_load.py --faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from tests.service.test_server import Process, running


def post(service: Process, path: str, body: dict) -> dict:
    request = urllib.request.Request(
        service._url + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


def tell(service: Process, number: int) -> dict:
    event = {"user_id": "ann", "item_id": f"item-{number % 40}", "type": "view", "event_id": f"e{number}"}
    return post(service, "/events", event)


def known(service: Process) -> set[str]:
    with urllib.request.urlopen(f"{service._url}/users/ann/history?limit=1000", timeout=20) as response:
        return {event["event_id"] for event in json.load(response)["events"]}


def until_known(service: Process, events: set[str], timeout_s: float = 30.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    found: set[str] = set()
    while found != events:
        with contextlib.suppress(urllib.error.HTTPError):  # 503 until Redis is found again
            found = known(service)
        assert time.monotonic() < give_up_at, (len(found), len(events))
        time.sleep(0.1)


def test_kill_9_of_service_and_redis_loses_no_acknowledged_event(small_bundle_dir, clean_redis, tmp_path):
    acknowledged = set()
    with running(small_bundle_dir, tmp_path, redis_url=clean_redis.url) as service:
        service.until("/readyz", 200)
        for number in range(20):
            acknowledged.add(tell(service, number)["event_id"])
        clean_redis.kill()
        for number in range(20, 40):
            assert tell(service, number)["buffered"]
            acknowledged.add(f"e{number}")
        service.process.kill()
        service.process.wait()
    clean_redis.start()
    with running(small_bundle_dir, tmp_path, redis_url=clean_redis.url) as service:
        service.until("/readyz", 200)
        until_known(service, acknowledged)


@pytest.mark.parametrize("pause_s", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_redis_that_stands_still_is_bridged(small_bundle_dir, clean_redis, tmp_path, pause_s):
    # Nobody reads the process's log here: one line per request would fill the pipe and stop it.
    settings = {"redis_url": clean_redis.url, "log_level": "warning"}
    with running(small_bundle_dir, tmp_path, **settings) as service:
        service.until("/readyz", 200)
        acknowledged = {tell(service, 0)["event_id"]}
        pid = clean_redis.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            started, slowest, number = time.monotonic(), 0.0, 0
            while time.monotonic() - started < pause_s:
                number += 1
                before = time.monotonic()
                acknowledged.add(tell(service, number)["event_id"])
                answer = post(service, "/recommend", {"history": ["item-1"], "k": 3})
                assert len(answer["items"]) == 3 and answer["degraded"]
                slowest = max(slowest, time.monotonic() - before)
                time.sleep(0.1)  # so that fewer than GTIREC_EVENT_HISTORY come together
            assert service.status("/readyz") == 200
        finally:
            os.kill(pid, signal.SIGCONT)
        assert slowest < 5, slowest  # the timeout of one look-up (0.5 s) and a retry, on a busy machine
        until_known(service, acknowledged)


def test_a_full_disk_while_redis_is_away_refuses_events_and_nothing_else(
    small_bundle_dir, clean_redis, tmp_path
):
    with running(
        small_bundle_dir, tmp_path, redis_url=clean_redis.url, log_level="warning", redis_timeout_s=0.2
    ) as service:
        service.until("/readyz", 200)
        clean_redis.kill()
        acknowledged = {tell(service, 0)["event_id"]}
        event = {"user_id": "ann", "item_id": "item-1", "type": "view", "event_id": "refused"}
        # As a full disk would: from now on no file of the service grows, and a write stops in its middle.
        pid, unlimited = service.process.pid, resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (64, unlimited[1]))
        assert service.status("/events", event) == 503
        answer = post(service, "/recommend", {"history": ["item-1"], "k": 3})
        assert len(answer["items"]) == 3 and answer["degraded"]
        assert service.status("/readyz") == 200
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        for number in range(1, 4):
            acknowledged.add(tell(service, number)["event_id"])
        clean_redis.start()
        until_known(service, acknowledged)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(clock, now);
  if (clock == CLOCK_REALTIME) {
    FILE *file = fopen(getenv("CLOCK_OFFSET_FILE"), "r");
    long offset = 0;
    if (file) { if (fscanf(file, "%ld", &offset) == 1) now->tv_sec += offset; fclose(file); }
  }
  return code;
}
"""


def test_a_jumping_clock_loses_no_event_and_stops_no_answer(small_bundle_dir, clean_redis, tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed to give the service a clock of its own")
    (tmp_path / "clock.c").write_text(CLOCK)
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    command = ["gcc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "clock.c"), "-ldl"]
    subprocess.run(command, check=True)
    offset.write_text("0")
    variables = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(offset)}
    with running(
        small_bundle_dir, tmp_path / "data", variables=variables, redis_url=clean_redis.url
    ) as service:
        service.until("/readyz", 200)
        acknowledged = set()
        for number, jump_s in enumerate((0, 10 * 365 * 86400, -20 * 365 * 86400, 3600)):
            offset.write_text(str(jump_s))
            acknowledged.add(tell(service, number)["event_id"])
            answer = post(service, "/recommend", {"user_id": "ann", "k": 3})
            assert len(answer["items"]) == 3 and not answer["degraded"]
            assert 0 <= answer["timings"]["total"] < 5000
        assert known(service) == acknowledged
        assert service.status("/readyz") == 200


def test_slow_clients_hold_up_nobody(small_bundle_dir, clean_redis, tmp_path):
    with running(small_bundle_dir, tmp_path, redis_url=clean_redis.url) as service:
        service.until("/readyz", 200)
        port = int(service._url.rsplit(":", 1)[1])
        dawdlers = []
        for number in range(200):
            client = socket.create_connection(("127.0.0.1", port))
            head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            client.sendall(head + (b"Content-Length: 500\r\n\r\n{" if number % 2 else b""))
            dawdlers.append(client)
        slowest = 0.0
        for _ in range(20):
            before = time.monotonic()
            assert service.status("/recommend", {"history": ["item-1"]}) == 200
            slowest = max(slowest, time.monotonic() - before)
        assert slowest < 3, slowest
        for client in dawdlers:
            client.close()
        assert service.status("/recommend", {"history": ["item-1"]}) == 200


NUM_CONNECTIONS = 10_000


@pytest.mark.slow
def test_ten_thousand_connections_are_all_answered(small_bundle_dir, clean_redis, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * NUM_CONNECTIONS:
        pytest.skip(f"this system grants {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    body = json.dumps({"history": ["item-1"], "k": 3}).encode()
    head = "POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"

    async def everyone(port: int) -> dict[int, int]:
        gate = asyncio.Semaphore(500)  # connecting; they all stay
        connected = []

        async def connect() -> None:
            async with gate:
                connected.append(await asyncio.open_connection("127.0.0.1", port))

        async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
            writer.write(head.encode() + b"\r\n\r\n" + body)
            await writer.drain()
            return int((await reader.readline()).split()[1])

        await asyncio.gather(*(connect() for _ in range(NUM_CONNECTIONS)))
        assert len(connected) == NUM_CONNECTIONS
        statuses = await asyncio.gather(*(ask(*streams) for streams in connected))
        for _, writer in connected:
            writer.close()
        return {status: statuses.count(status) for status in set(statuses)}

    try:
        with running(
            small_bundle_dir, tmp_path, redis_url=clean_redis.url, log_level="warning", request_deadline_s=240
        ) as service:
            service.until("/readyz", 200)
            port = int(service._url.rsplit(":", 1)[1])
            statuses = asyncio.run(asyncio.wait_for(everyone(port), 250))
            assert statuses.keys() <= {200, 429}, statuses
            assert statuses[200] > 0
            assert service.status("/readyz") == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
