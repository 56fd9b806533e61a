"""Several replicas of the service in one process, over one real Redis, with two bundles on their shelf."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import polars as pl

from service.app import create_app
from service.bundle import load_bundle
from service.settings import Settings
from tests.conftest import FakeEngine, small_items, write_small_bundle

KEY = "a-key-of-the-tests-1234"


def make_shelf(small_bundle_dir, tmp_path):
    """A directory with two bundles: the small one, and one of five items more with other SIDs."""
    directory = tmp_path / "shelf"
    shutil.copytree(small_bundle_dir, directory / "one")
    items, codes = small_items(45)
    codes = codes[:, ::-1]
    other = write_small_bundle(tmp_path, items.with_columns(pl.col("title") + " II"), codes, "other")
    shutil.move(other, directory / "two")
    (directory / "half-copied").mkdir()
    return directory


class Replica:
    """One app with its client."""

    def __init__(self, app, client, engines):
        self.app, self.client, self.engines = app, client, engines

    @property
    def current(self):
        return self.app.state.services.current

    async def recommend(self, **body):
        response = await self.client.post("/recommend", json={"history": ["item-5"], "k": 60, **body})
        assert response.status_code == 200, response.text
        answer = response.json()
        return answer, {item["item_id"]: item for item in answer["items"]}

    async def until(self, condition, timeout_s=20.0):
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def replicas(shelf, url, tmp_path, count=2, configured="one", prepare=lambda engine: None, **settings):
    async with AsyncExitStack() as stack:
        made = []
        for place in range(count):
            bundle, engines = load_bundle(shelf / configured), []

            def engine_of(bundle, engines=engines):
                def make():
                    engines.append(FakeEngine(bundle))
                    prepare(engines[-1])
                    return engines[-1]

                return make

            values = {
                "redis_url": url,
                "data_dir": tmp_path / f"data-{place}",
                "bundles_dir": shelf,
                "admin_key": KEY,
                "engine_start_timeout_s": 20,
                **settings,
            }
            app = create_app(Settings(**values), bundle=bundle, engine_of=engine_of)
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(app, raise_app_exceptions=False),
                base_url="http://test",
                headers={"X-API-Key": KEY},
            )
            await stack.enter_async_context(app.router.lifespan_context(app))
            await stack.enter_async_context(client)
            made.append(Replica(app, client, engines))
        for replica in made:
            await replica.until(lambda: not replica.app.state.services.not_ready_reasons())  # noqa: B023
        yield made


async def ids_of(shelf):
    return [load_bundle(shelf / name).bundle_id for name in ("one", "two")]


async def served_by_all(made, bundle_id):
    for replica in made:
        await replica.until(lambda: replica.current.serving.bundle_id == bundle_id)  # noqa: B023
        serving = replica.current.serving
        await replica.until(lambda: serving.is_up_to_date)  # noqa: B023
