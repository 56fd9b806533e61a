"""Admission by beam rows: a bound, a queue in order, a deadline, and nothing leaks."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.engine.admission import Admission
from service.errors import EngineOverloaded

pytestmark = pytest.mark.anyio


async def test_refuses_beyond_the_limit_and_frees_on_every_way_out():
    admission = Admission(10)
    async with admission.reserve(6):
        too_many = pytest.raises(EngineOverloaded, match="6 beams are in work and 10 is the limit")
        with too_many as refused:
            async with admission.reserve(5):
                raise AssertionError("must not be reached")
        assert refused.value.retry_after_s >= 1
        with pytest.raises(ZeroDivisionError):
            async with admission.reserve(4):
                raise ZeroDivisionError
        async with admission.reserve(4):
            pass
    async with admission.reserve(10):
        pass


async def test_the_queue_is_in_order_and_a_wide_one_is_not_overtaken():
    admission, order = Admission(10, queue_s=5), []

    async def work(name: str, rows: int) -> None:
        async with admission.reserve(rows):
            order.append(name)
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(work(*one)) for one in [("a", 8), ("wide", 9), ("narrow", 1)]]
    await asyncio.gather(*tasks)
    assert order == ["a", "wide", "narrow"]
    assert admission._beam_rows == 0 and not admission._queue


async def hold(admission: Admission, rows: int, until: asyncio.Event) -> None:
    async with admission.reserve(rows):
        await until.wait()


async def test_the_wait_has_an_end_and_the_queue_a_bound():
    admission, never = Admission(10, queue_s=0.1), asyncio.Event()
    async with admission.reserve(10):
        started = time.monotonic()
        waiting = asyncio.create_task(hold(admission, 7, never))
        await asyncio.sleep(0)
        with pytest.raises(EngineOverloaded):  # 7 wait already: at once
            await hold(admission, 4, never)
        assert time.monotonic() - started < 0.09
        with pytest.raises(EngineOverloaded):
            await waiting
    async with admission.reserve(10):
        pass


@pytest.mark.parametrize("is_late", [False, True], ids=["while it waits", "when it is let in"])
async def test_who_leaves_the_queue_holds_nothing(is_late):
    admission, done = Admission(10, queue_s=5), asyncio.Event()
    async with admission.reserve(10):
        leaving = asyncio.create_task(hold(admission, 8, done))
        staying = asyncio.create_task(hold(admission, 2, done))
        await asyncio.sleep(0.01)
        if not is_late:
            leaving.cancel()
            await asyncio.sleep(0.01)
    if is_late:
        leaving.cancel()  # in the very moment in which it was let in
    await asyncio.gather(leaving, return_exceptions=True)
    assert admission._beam_rows == 2
    done.set()
    await staying
    assert admission._beam_rows == 0 and not admission._queue
