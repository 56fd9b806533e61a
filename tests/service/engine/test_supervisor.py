"""The supervisor: starts, tests, notices deaths of every kind, rebuilds, gives up."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from service.decoding.search_space import write_catalogue
from service.decoding.trie import Trie
from service.engine.canary import Canary
from service.engine.protocol import DecodeRequest, Engine
from service.engine.supervisor import EngineSupervisor, SupervisorLimits
from service.errors import CatalogueError, EngineDead, EngineError
from service.observability import metrics

pytestmark = pytest.mark.anyio

QUICK = SupervisorLimits(start_timeout_s=5, give_up_s=5, canary_interval_s=60, canary_timeout_s=5)


class Workshop:
    """Makes engines from a plan; the last entry of the plan repeats."""

    def __init__(self, make_engine, *plan):
        self._make_engine = make_engine
        self._plan = list(plan) or [{}]
        self.engines = []
        self.reasons: list[str] = []

    def build(self):
        number = min(len(self.engines), len(self._plan) - 1)
        self.engines.append(self._make_engine(**self._plan[number]))
        return self.engines[-1]


@pytest.fixture
def workshop(fake_engine, small_bundle):
    return lambda *plan: Workshop(lambda **values: type(fake_engine)(small_bundle, **values), *plan)


@asynccontextmanager
async def supervised(workshop, bundle, limits=QUICK):
    supervisor = EngineSupervisor(workshop.build, Canary(bundle), limits, workshop.reasons.append)
    supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.close()
    assert all(engine.is_closed for engine in workshop.engines)


async def until(condition, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def a_request(number=0):
    return DecodeRequest([1, 10, 14, 18], 4, f"request-{number}")


async def test_fake_engine_implements_the_protocol(fake_engine):
    assert isinstance(fake_engine, Engine)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda beams: replace(beams, first_row=beams.first_row * 0 + beams.first_row[0]), "repeated"),
        (lambda beams: replace(beams, end_row=beams.first_row), "invalid"),
        (lambda beams: replace(beams, first_row=-1 - beams.first_row), "invalid"),
    ],
)
async def test_what_is_no_item_or_comes_twice_is_counted_and_not_passed_on(
    workshop, small_bundle, damage, kind
):
    def count(kind):
        return metrics.BEAMS.labels(kind=kind, variant="")._value.get()

    shop = workshop()
    async with supervised(shop, small_bundle) as supervisor:
        await until(lambda: supervisor.is_ready)
        engine, before = shop.engines[0], {one: count(one) for one in ("unique", kind)}
        assert len((await supervisor.decode(a_request())).codes) == 4
        assert count("unique") == before["unique"] + 4 and count(kind) == before[kind]
        sound = engine.decode

        async def damaged(request):
            return damage(await sound(request))

        engine.decode = damaged
        with pytest.raises(EngineError, match="invalid or repeated semantic IDs"):
            await supervisor.decode(a_request(1))
        assert count(kind) > before[kind]
        assert supervisor.is_ready


async def test_dead_engine_is_refused_at_once_and_rebuilt(workshop, small_bundle):
    shop = workshop()
    async with supervised(shop, small_bundle) as supervisor:
        await until(lambda: supervisor.is_ready)
        assert len((await supervisor.decode(a_request())).codes) == 4
        shop.engines[0].kill()
        started = time.monotonic()
        with pytest.raises(EngineDead):
            await supervisor.decode(a_request())
        assert time.monotonic() - started < 0.1
        await until(lambda: supervisor.is_ready)
        assert len(shop.engines) == 2 and shop.engines[0].is_closed
        assert len((await supervisor.decode(a_request())).codes) == 4
        assert supervisor.num_rebuilds == 1 and not shop.reasons


async def test_death_is_noticed_without_any_request(workshop, small_bundle):
    shop = workshop()
    async with supervised(shop, small_bundle) as supervisor:
        await until(lambda: supervisor.is_ready)
        shop.engines[0].kill()
        assert not supervisor.is_ready
        await until(lambda: supervisor.is_ready)
        assert len(shop.engines) == 2


async def test_requests_in_flight_fail_when_the_engine_hangs(workshop, small_bundle):
    limits = SupervisorLimits(give_up_s=5, canary_interval_s=0.1, canary_timeout_s=0.3)
    shop = workshop()
    async with supervised(shop, small_bundle, limits) as supervisor:
        await until(lambda: supervisor.is_ready)
        shop.engines[0].delay_s = 1000
        started = time.monotonic()
        with pytest.raises(EngineDead, match="lost"):
            await supervisor.decode(a_request())
        assert time.monotonic() - started < 2
        await until(lambda: supervisor.is_ready)
        assert len(shop.engines) == 2


async def test_a_slow_engine_that_finishes_requests_is_not_hung(workshop, small_bundle):
    limits = SupervisorLimits(give_up_s=5, canary_interval_s=0.05, canary_timeout_s=0.3)
    shop = workshop()
    async with supervised(shop, small_bundle, limits) as supervisor:
        await until(lambda: supervisor.is_ready)
        shop.engines[0].delay_s = 0.2
        for number in range(5):
            await supervisor.decode(a_request(number))
        assert len(shop.engines) == 1


async def test_the_callers_own_cancellation_stays_one(workshop, small_bundle):
    shop = workshop()
    async with supervised(shop, small_bundle) as supervisor:
        await until(lambda: supervisor.is_ready)
        shop.engines[0].delay_s = 1000
        task = asyncio.create_task(supervisor.decode(a_request()))
        await until(lambda: len(shop.engines[0].requests) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert shop.engines[0].num_cancelled == 1 and supervisor.is_ready


async def test_first_start_that_fails_is_given_up_with_the_engines_sentence(workshop, small_bundle):
    shop = workshop({"start_error": EngineError("this model is not supported")})
    async with supervised(shop, small_bundle) as supervisor:
        await until(lambda: shop.reasons)
        assert shop.reasons == ["the engine cannot be started: this model is not supported"]
        assert supervisor.detail == shop.reasons[0] and len(shop.engines) == 1


async def test_a_wrong_test_answer_counts_as_a_failed_start(workshop, small_bundle):
    shop = workshop({"decode_error": EngineError("weights are damaged")})
    async with supervised(shop, small_bundle) as supervisor:
        await until(lambda: shop.reasons)
        assert "weights are damaged" in shop.reasons[0] and not supervisor.is_ready


async def test_rebuilding_is_tried_again_and_then_given_up(workshop, small_bundle):
    limits = SupervisorLimits(give_up_s=1.0, canary_interval_s=60)
    shop = workshop({}, {"start_error": OSError("no memory")})
    async with supervised(shop, small_bundle, limits) as supervisor:
        await until(lambda: supervisor.is_ready)
        shop.engines[0].kill()
        started = time.monotonic()
        await until(lambda: shop.reasons)
        assert 1.0 <= time.monotonic() - started < 4
        assert len(shop.engines) >= 3
        with pytest.raises(EngineDead, match="no memory"):
            await supervisor.decode(a_request())


async def test_a_start_that_hangs_is_given_up(workshop, small_bundle):
    limits = SupervisorLimits(start_timeout_s=0.2)
    shop = workshop({"delay_s": 1000})
    async with supervised(shop, small_bundle, limits):
        await until(lambda: shop.reasons)
        assert "did not start in time" in shop.reasons[0]


async def test_an_engine_that_keeps_dying_is_given_up(workshop, small_bundle):
    limits = SupervisorLimits(give_up_s=0.5, canary_interval_s=60)
    shop = workshop()
    async with supervised(shop, small_bundle, limits) as supervisor:

        async def sabotage():
            while not shop.reasons:
                if supervisor.is_ready:
                    shop.engines[-1].kill()
                await asyncio.sleep(0.01)

        await asyncio.wait_for(sabotage(), 10)
        assert "keeps dying" in shop.reasons[0]
        assert 1 < len(shop.engines) < 20


async def test_a_rebuilt_engine_gets_the_exchanged_catalogue(workshop, small_bundle, tmp_path):
    shop = workshop()
    codes = small_bundle.semantic_ids.astype(np.int64)
    fewer = Trie.build(codes[::2], small_bundle.manifest.codebook_sizes)
    write_catalogue(tmp_path / "fewer", fewer, pl.DataFrame({"n": range(fewer.num_items)}))
    async with supervised(shop, small_bundle) as supervisor:
        await until(lambda: supervisor.is_ready)
        await supervisor.load_catalogue(tmp_path / "fewer")
        await supervisor.hide_rows(np.array([1]), fewer.version)
        with pytest.raises(CatalogueError):
            await supervisor.load_catalogue(tmp_path)
        shop.engines[-1].kill()
        await until(lambda: len(shop.engines) == 2 and supervisor.is_ready)
        beams = await supervisor.decode(DecodeRequest([1, 10, 14, 18], 100, "after"))
        assert beams.trie_version == fewer.version
        assert len(beams.codes) == fewer.num_leaves - 1
