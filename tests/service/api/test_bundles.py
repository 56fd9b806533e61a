"""Activating another bundle on all replicas while they answer, and rolling back."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.bundle import load_bundle
from tests.service.fleet import KEY, ids_of, make_shelf, replicas, served_by_all

pytestmark = pytest.mark.anyio

LAMP = {"title": "New white lamp", "metadata": {"colour": "white", "price": 5}}


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch):
    monkeypatch.setattr("service.rollout.follower.BEAT_S", 0.05)


@pytest.fixture
def shelf(small_bundle_dir, tmp_path):
    return make_shelf(small_bundle_dir, tmp_path)


async def activate(replica, path):
    return await replica.client.post(f"/admin/bundles/{path}", params={"wait_s": 30})


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
        follower = first.app.state.services.follower
        await first.until(lambda: {each["bundle_id"] for each in follower.replicas.values()} == {one})
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
