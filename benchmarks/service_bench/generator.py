"""Open-loop load: requests leave at moments drawn beforehand, whether or not answers came."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

import aiohttp
import numpy as np

HUNG_S = 30.0
TIMER_S = 0.0015


@dataclass(frozen=True)
class Answer:
    """One request.

    Attributes:
        status: of the answer; 0 if there was none.
        late_s: from the moment the request was due to the last byte of the answer.
        sent_s: how much later than due it was sent: the generator's own delay, part of `late_s`.
        timings: milliseconds per stage, as the service says.
    """

    status: int
    late_s: float
    sent_s: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def overhead_ms(self) -> float:
        """All that is not the engine: `decode` runs from the request's admission to the engine's reply."""
        return 1000 * self.late_s - self.timings.get("decode", 0.0)


class Generator:
    """Sends recommendations with random histories of the bundle's items."""

    def __init__(self, session: aiohttp.ClientSession, url: str, item_ids: list[str], k: int) -> None:
        self._session, self._url, self._item_ids, self._k = session, url, item_ids, k
        self._rng = np.random.default_rng(1)

    async def open_loop(self, per_s: float, seconds: float, *, path: str = "/recommend") -> list[Answer]:
        """Poisson arrivals; of GET requests where the path is another."""
        gaps = self._rng.exponential(1 / per_s, size=max(1, int(1.2 * per_s * seconds) + 20))
        moments = np.cumsum(gaps)
        moments = moments[moments < seconds]
        bodies = [self.body() if path == "/recommend" else None for _ in moments]
        start, tasks = time.perf_counter(), []
        for moment, body in zip(moments, bodies, strict=True):
            due = start + float(moment)
            await _until(due)
            tasks.append(asyncio.create_task(self.send(body, due, path)))
        return list(await asyncio.gather(*tasks))

    async def closed_loop(self, num_clients: int, seconds: float) -> float:
        """Answers a second with so many clients, each sending as soon as it was answered."""
        end = time.perf_counter() + seconds
        num_answers = 0

        async def client() -> None:
            nonlocal num_answers
            while (now := time.perf_counter()) < end:
                answer = await self.send(self.body(), now)
                num_answers += answer.status == 200
                if answer.status == 429:
                    await asyncio.sleep(0.005)

        await asyncio.gather(*(client() for _ in range(num_clients)))
        return num_answers / seconds

    def body(self) -> bytes:
        """A request with a random history."""
        places = self._rng.integers(0, len(self._item_ids), int(self._rng.integers(5, 20)))
        return json.dumps({"history": [self._item_ids[n] for n in places], "k": self._k}).encode()

    async def send(self, body: bytes | None, due: float, path: str = "/recommend") -> Answer:
        """Send one request now and wait for its answer."""
        sent_s = time.perf_counter() - due
        try:
            async with self._session.request(
                "GET" if body is None else "POST", self._url + path, data=body,
                headers={"content-type": "application/json"}, timeout=aiohttp.ClientTimeout(HUNG_S),
            ) as response:  # fmt: skip
                raw = await response.read()
                late_s = time.perf_counter() - due
                is_answer = response.status == 200 and body is not None
                return Answer(
                    response.status, late_s, sent_s, json.loads(raw)["timings"] if is_answer else {}
                )
        except (aiohttp.ClientError, TimeoutError):
            return Answer(0, time.perf_counter() - due, sent_s)


async def _until(due: float) -> None:
    """Wait for a moment of `time.perf_counter`; asyncio's own timers are a millisecond late."""
    if (wait := due - time.perf_counter() - TIMER_S) > 0:
        await asyncio.sleep(wait)
    while time.perf_counter() < due:
        await asyncio.sleep(0)


def percentile(values: list[float], share: float) -> float:
    """In the unit of the values; NaN if there are none."""
    return float(np.percentile(values, share)) if values else float("nan")
