"""The gate never lets in too many beams, keeps the order, and forgets nobody."""

from __future__ import annotations

import asyncio
import random

import pytest

from service.engine.gate import BeamGate

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("seed", range(8))
async def test_the_bound_and_the_order_hold_whatever_is_cancelled(seed: int) -> None:
    chance = random.Random(seed)
    gate = BeamGate(100)
    inside, order, finished = [0], [], []

    async def request(number: int, rows: int) -> None:
        async with gate.hold(rows):
            order.append(number)
            inside[0] += rows
            assert inside[0] <= 100 or inside[0] == rows
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                inside[0] -= rows
        finished.append(number)

    tasks = [asyncio.create_task(request(n, chance.choice([1, 10, 50, 100, 250]))) for n in range(60)]
    cancelled = set()
    for _ in range(200):
        await asyncio.sleep(0)
        number = chance.randrange(60)
        if chance.random() < 0.2 and tasks[number].cancel():
            cancelled.add(number)
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert order == sorted(order)
    assert set(finished) >= set(range(60)) - cancelled
    async with asyncio.timeout(1), gate.hold(100):  # everything was given back
        pass
