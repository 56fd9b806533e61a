"""Activating another bundle on all replicas while they answer, and rolling back."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import numpy as np
import polars as pl
import pytest

from service.app import create_app
from service.bundle import load_bundle
from service.settings import Settings
from tests.conftest import FakeEngine, small_items, write_small_bundle

pytestmark = pytest.mark.anyio

KEY = "a-key-of-the-tests-1234"
LAMP = {"title": "New white lamp", "metadata": {"colour": "white", "price": 5}}


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch):
    monkeypatch.setattr("service.activation.BEAT_S", 0.05)


@pytest.fixture
def shelf(small_bundle_dir, tmp_path):
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
async def replicas(shelf, url, tmp_path, count=2, configured="one", prepare=lambda engine: None):
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

            settings = Settings(
                redis_url=url,
                data_dir=tmp_path / f"data-{place}",
                bundles_dir=shelf,
                admin_key=KEY,
                engine_start_timeout_s=20,
            )
            app = create_app(settings, bundle=bundle, engine_of=engine_of)
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


async def activate(replica, path):
    return await replica.client.post(f"/admin/bundles/{path}", params={"wait_s": 30})


async def served_by_all(made, bundle_id):
    for replica in made:
        await replica.until(lambda: replica.current.serving.bundle_id == bundle_id)  # noqa: B023
        serving = replica.current.serving
        await replica.until(lambda: serving.is_up_to_date)  # noqa: B023


async def test_all_replicas_switch_and_nobody_is_refused(shelf, clean_redis, tmp_path):
    one, two = await ids_of(shelf)
    async with replicas(shelf, clean_redis.url, tmp_path) as made:
        first, second = made
        stop, seen, failures = asyncio.Event(), set(), []

        async def keep_asking(replica, number):
            while not stop.is_set():
                response = await replica.client.post("/recommend", json={"history": ["item-5"], "k": 20})
                answer = response.json()
                if response.status_code != 200 or answer["degraded"] or len(answer["items"]) != 20:
                    failures.append(answer)
                    continue
                bundle = {one: "one", two: "two"}[answer["bundle_id"]]
                seen.add((number, bundle))
                if any(item["title"].endswith("II") != (bundle == "two") for item in answer["items"]):
                    failures.append(answer)

        async def keep_writing():
            number = 0
            while not stop.is_set():
                response = await second.client.patch("/items/item-9", json={"popularity": number})
                if response.status_code != 200:
                    failures.append(response.json())
                number += 1
                await asyncio.sleep(0.02)
            return number

        asking = [asyncio.create_task(keep_asking(r, n)) for n, r in enumerate(made) for _ in range(2)]
        writing = asyncio.create_task(keep_writing())
        response = await activate(first, f"{two}/activate")
        assert response.status_code == 200, response.text
        assert response.json()["state"] == "done"
        await served_by_all(made, two)
        await asyncio.sleep(0.2)
        stop.set()
        num_writes = await writing
        await asyncio.gather(*asking)
        assert not failures and seen == {(n, name) for n in (0, 1) for name in ("one", "two")}
        found = (await first.client.get("/items/item-9")).json()
        assert found["popularity"] == num_writes - 1  # no write was lost on the way
        for replica in made:
            await replica.until(lambda: replica.engines[0].is_closed)  # noqa: B023
            assert not replica.engines[-1].is_closed


async def test_live_items_and_tombstones_are_carried_over_and_back(shelf, clean_redis, tmp_path):
    one, two = await ids_of(shelf)
    async with replicas(shelf, clean_redis.url, tmp_path) as made:
        first, second = made
        await first.client.put("/items/sku-1", json=LAMP)
        await first.client.delete("/items/item-3")
        await second.client.patch("/items/item-4", json={"available": False})
        before = (await second.client.get("/items/item-9")).json()
        assert (await activate(second, f"{two}/activate")).status_code == 200
        await served_by_all(made, two)
        for replica in made:
            answer, items = await replica.recommend()
            assert answer["bundle_id"] == two and answer["catalogue_version"] > 3
            assert "sku-1" in items and "item-44" in items
            assert not {"item-3", "item-4"} & set(items)
            codes = np.array(load_bundle(shelf / "two").semantic_ids)
            spell = load_bundle(shelf / "two").manifest.spell
            assert items["sku-1"]["semantic_id"] not in {spell(sid) for sid in codes}  # a free one there
            assert (await replica.client.get("/items/item-3")).status_code == 404
            assert (await replica.client.get("/items/item-9")).json()["title"] == before["title"] + " II"
        # Under the second bundle: the new item goes, another comes, one deleted comes back.
        await first.client.delete("/items/sku-1")
        await first.client.put("/items/sku-2", json=LAMP)
        await second.client.put("/items/item-3", json={"title": "White lamp back", "description": "x"})
        assert (await activate(first, "rollback")).status_code == 200
        await served_by_all(made, one)
        for replica in made:
            answer, items = await replica.recommend()
            assert answer["bundle_id"] == one and "item-44" not in items
            assert "sku-2" in items and items["item-3"]["title"] == "White lamp back"
            assert "sku-1" not in items and "item-4" not in items
            assert (await replica.client.get("/items/sku-1")).status_code == 404
        activator = first.app.state.services.activator
        await first.until(lambda: {each["bundle_id"] for each in activator.replicas.values()} == {one})
        listed = (await first.client.get("/admin/bundles")).json()
        assert {b["bundle_id"]: (b["is_active"], b["is_previous"]) for b in listed["bundles"]} == {
            one: (True, False),
            two: (False, True),
        }
        assert {each["bundle_id"] for each in listed["replicas"].values()} == {one}
        assert (await first.client.patch("/items/item-9", json={"popularity": 1})).status_code == 200


async def test_a_bundle_whose_engine_fails_is_not_activated(shelf, clean_redis, tmp_path):
    one, two = await ids_of(shelf)

    def prepare(engine):
        if engine.bundle.bundle_id == two:
            engine.start_error = RuntimeError("no memory for a second model")

    async with replicas(shelf, clean_redis.url, tmp_path, prepare=prepare) as made:
        response = await activate(made[0], f"{two}/activate")
        assert response.status_code == 503 and response.json()["state"] == "failed"
        assert "no memory" in response.json()["detail"] and "stays active" in response.json()["detail"]
        for replica in made:
            answer, _ = await replica.recommend()
            assert answer["bundle_id"] == one
            await replica.until(lambda: all(e.is_closed for e in replica.engines[1:]))  # noqa: B023
        assert (await made[0].client.put("/items/sku-1", json=LAMP)).status_code == 201


async def test_a_damaged_bundle_is_refused_with_a_sentence(shelf, clean_redis, tmp_path):
    one, two = await ids_of(shelf)
    with (shelf / "two" / "semantic_ids.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    async with replicas(shelf, clean_redis.url, tmp_path, 1) as (only,):
        response = await activate(only, f"{two}/activate")
        assert response.status_code == 503 and "changed or damaged" in response.json()["detail"]
        assert (await activate(only, f"{'f' * 16}/activate")).status_code == 404
        assert (await activate(only, f"{one}/activate")).status_code == 409
        assert (await activate(only, "rollback")).status_code == 404


async def test_a_restart_goes_on_with_the_active_bundle_and_its_changes(shelf, clean_redis, tmp_path):
    _, two = await ids_of(shelf)
    async with replicas(shelf, clean_redis.url, tmp_path, 1) as (only,):
        assert (await activate(only, f"{two}/activate")).status_code == 200
        await only.client.put("/items/sku-1", json=LAMP)
    async with replicas(shelf, clean_redis.url, tmp_path, 1) as (only,):
        answer, items = await only.recommend()
        assert answer["bundle_id"] == two and "sku-1" in items


async def test_a_newly_deployed_bundle_takes_over(shelf, clean_redis, tmp_path):
    _, two = await ids_of(shelf)
    async with replicas(shelf, clean_redis.url, tmp_path, 1) as (only,):
        await only.client.put("/items/sku-1", json=LAMP)
        await only.client.delete("/items/item-3")
    async with replicas(shelf, clean_redis.url, tmp_path, 1, configured="two") as (only,):
        await served_by_all([only], two)
        answer, items = await only.recommend()
        assert answer["bundle_id"] == two and "sku-1" in items and "item-3" not in items


async def test_administration_needs_a_key(start_app):
    async with start_app() as running:
        response = await running.client.get("/admin/bundles")
        assert response.status_code == 403 and "GTIREC_ADMIN_KEY" in response.json()["error"]
    async with start_app(admin_key=KEY, api_key="k" * 16) as running:
        assert (await running.client.get("/admin/bundles")).status_code == 401
        response = await running.client.get("/admin/bundles", headers={"X-API-Key": "k" * 16})
        assert response.status_code == 403
        response = await running.client.get("/admin/bundles", headers={"X-API-Key": KEY})
        assert response.status_code == 200 and len(response.json()["bundles"]) == 1
