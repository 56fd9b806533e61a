"""Two bundles at once: who gets which, what is counted, what happens when B fails or it ends."""

from __future__ import annotations

import asyncio
import re

import pytest

from service.observability import metrics
from service.recommendation_id import origin_of
from tests.service.fleet import KEY, ids_of, make_shelf, replicas, served_by_all

pytestmark = pytest.mark.anyio

LAMP = {"title": "New white lamp", "metadata": {"colour": "white", "price": 5}}


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch):
    monkeypatch.setattr("service.rollout.follower.BEAT_S", 0.05)


@pytest.fixture
def shelf(small_bundle_dir, tmp_path):
    return make_shelf(small_bundle_dir, tmp_path)


async def call(replica, method, path, status, **options):
    response = await replica.client.request(method, path, **options)
    assert response.status_code == status, response.text
    return response.json()


async def begin(replica, bundle_id, share=0.5, status=201):
    body = {"bundle_id": bundle_id, "share": share, "name": "two"}
    return await call(replica, "POST", "/admin/experiments", status, json=body, params={"wait_s": 30})


async def ask(replica, user, **body):
    body = {"user_id": user, "history": ["item-5"], "k": 20, **body}
    return await call(replica, "POST", "/recommend", 200, json=body)


async def running(replica):
    return (await call(replica, "GET", "/admin/experiments", 200))["running"]


def total(counter, **labels):
    return counter.labels(**labels)._value.get()


async def test_users_are_shared_out_and_stay_where_they_are(shelf, clean_redis, tmp_path):
    one, two = await ids_of(shelf)
    async with replicas(shelf, clean_redis.url, tmp_path) as made:
        first, second = made
        assert (await ask(first, "ann"))["variant"] is None
        experiment_id = (await begin(first, two))["experiment_id"]
        seen = {}
        for number in range(60):
            answers = [await ask(replica, f"user-{number}") for replica in made]
            assert len({answer["variant"] for answer in answers}) == 1  # the same on every replica
            for answer in answers:
                seen[number] = answer["variant"]
                assert answer["bundle_id"] == {"a": one, "b": two}[answer["variant"]]
                assert answer["assigned_variant"] == answer["variant"] and not answer["degraded"]
                is_of_b = answer["variant"] == "b"
                assert all(item["title"].endswith("II") == is_of_b for item in answer["items"])
                origin = origin_of(answer["recommendation_id"])
                assert (origin.experiment_id, origin.variant) == (experiment_id, answer["variant"])
        assert 12 <= sum(variant == "b" for variant in seen.values()) <= 48
        # Without a user: the session, else the history; with nothing at all the active bundle.
        for body in ({"session_id": "s-1"}, {}):
            variants = {(await ask(each, None, **body))["variant"] for each in made for _ in range(3)}
            assert len(variants) == 1
        nobody = await ask(first, None, history=[])
        assert nobody["variant"] == "a" and origin_of(nobody["recommendation_id"]).experiment_id == ""
        # More users for B: nobody goes back to A.
        path = f"/admin/experiments/{experiment_id}"
        assert (await call(second, "PATCH", path, 200, json={"share": 0.9}))["share"] == 0.9
        await first.until(lambda: first.app.state.services.experiments.running.share == 0.9)
        later = {number: (await ask(first, f"user-{number}"))["variant"] for number in seen}
        assert all(later[number] == "b" for number in seen if seen[number] == "b")
        assert sum(variant == "b" for variant in later.values()) > 40
        info = await call(second, "GET", "/info", 200)
        assert info["experiment"]["b"] == two and info["bundle_id"] == one
        lines = (
            await second.client.post(
                "/recommend/batch", json={"requests": [{"user_id": f"user-{n}", "k": 1} for n in range(9)]}
            )
        ).text.splitlines()
        assert {'"variant":"b"' in line for line in lines} == {True, False} or len(lines) == 9


async def test_events_are_credited_to_the_variant_with_intervals(shelf, clean_redis, tmp_path):
    _, two = await ids_of(shelf)
    async with replicas(shelf, clean_redis.url, tmp_path) as made:
        first, second = made
        await begin(first, two)
        clicks, answers = {"a": 0, "b": 0}, {"a": 0, "b": 0}
        for number in range(40):
            answer = await ask(made[number % 2], f"user-{number}")
            answers[answer["variant"]] += 1
            event = {
                "user_id": f"user-{number}",
                "item_id": answer["items"][0]["item_id"],
                "type": "click",
                "event_id": "c",
                "recommendation_id": answer["recommendation_id"],
            }
            if number % 4 == 0 or answer["variant"] == "b":
                clicks[answer["variant"]] += 1
                for _ in range(2):  # the second is a repetition
                    await call(second, "POST", "/events", 200, json=event)
        forced = await ask(first, "user-1", variant="b")
        forged = f"{two}-deadbeefb00-{'0' * 32}"
        for name in (forced["recommendation_id"], forged):
            about = {"user_id": "eve", "item_id": "item-1", "type": "click", "recommendation_id": name}
            await call(first, "POST", "/events", 200, json=about)

        async def numbers():
            variants = (await running(first))["variants"]
            return {
                name: (each["answers"], each["events"].get("click", {"events": 0})["events"])
                for name, each in variants.items()
            }

        wanted = {name: (answers[name], clicks[name]) for name in answers}
        async with asyncio.timeout(10):
            while await numbers() != wanted:
                await asyncio.sleep(0.05)
        report = await running(second)
        rates = {name: each["events"]["click"] for name, each in report["variants"].items()}
        assert rates["b"]["rate"] == 1 and rates["a"]["rate"] == pytest.approx(clicks["a"] / answers["a"])
        assert rates["a"]["low"] < rates["a"]["rate"] < rates["a"]["high"]
        gain = report["gains"]["click"]
        assert gain["low"] < gain["difference"] == pytest.approx(1 - rates["a"]["rate"])
        text = (await first.client.get("/metrics")).text
        for series in (
            f'gtirec_recommendations_total{{bundle_id="{two}",variant="b"}}',
            f'gtirec_attributed_events_total{{bundle_id="{two}",kind="click",variant="b"}}',
            f'gtirec_attributed_events_total{{bundle_id="{two}",kind="click",variant="forced"}}',
            'gtirec_request_duration_seconds_count{route="/recommend",variant="b"}',
            'gtirec_stage_duration_seconds_count{stage="decode",variant="b"}',
            'gtirec_recommendations_returned_total{source="model",variant="b"}',
            'gtirec_engine_up{variant="b"}',
        ):
            assert re.search(re.escape(series) + " [1-9]", text), series
        # After the end, late events still count.
        path = f"/admin/experiments/{report['experiment_id']}/stop"
        stopped = await call(first, "POST", path, 200)
        assert stopped["outcome"] == "stopped" and stopped["ended_at"]
        await first.until(lambda: first.app.state.services.experiments.running is None)
        async with asyncio.timeout(10):  # both replicas are of this process, and so are its metrics
            while 'gtirec_engine_up{variant="b"}' in (await first.client.get("/metrics")).text:
                await asyncio.sleep(0.05)
        late = {**event, "event_id": "late", "type": "purchase"}
        await call(first, "POST", "/events", 200, json=late)
        listed = await call(second, "GET", "/admin/experiments", 200)
        assert listed["running"] is None
        variant = origin_of(late["recommendation_id"]).variant
        async with asyncio.timeout(10):
            while "purchase" not in listed["ended"][0]["variants"][variant]["events"]:
                listed = await call(second, "GET", "/admin/experiments", 200)
                await asyncio.sleep(0.05)


async def test_while_b_fails_its_users_get_a(shelf, clean_redis, tmp_path, monkeypatch):
    one, two = await ids_of(shelf)
    monkeypatch.setattr("service.rollout.experiments.REST_S", 600)
    cannot_start = []

    def prepare(engine):
        engine.start_error = RuntimeError("still broken") if cannot_start else None

    settings = {"prepare": prepare, "request_deadline_s": 6.0}
    async with replicas(shelf, clean_redis.url, tmp_path, 1, **settings) as (only,):
        await begin(only, two, share=1)
        assert (await ask(only, "ann"))["bundle_id"] == two
        engine = next(e for e in only.engines if e.bundle.bundle_id == two)

        async def falls_back(reason):
            before = total(metrics.VARIANT_FALLBACKS, reason=reason)
            answer = await ask(only, "ann")
            assert (answer["variant"], answer["assigned_variant"], answer["bundle_id"]) == ("a", "b", one)
            assert not answer["degraded"] and {item["source"] for item in answer["items"]} == {"model"}
            assert origin_of(answer["recommendation_id"]).variant == "a"
            assert total(metrics.VARIANT_FALLBACKS, reason=reason) == before + 1

        engine.decode_error = ValueError("a bug of B's")
        await falls_back("bug")
        engine.decode_error = None
        await falls_back("resting")  # not asked again at once
        experiments = only.app.state.services.experiments
        experiments._rests_until = 0.0
        engine.delay_s = 60  # hangs: half of the deadline is left for A
        await falls_back("late")
        await falls_back("resting")
        engine.delay_s, experiments._rests_until = 0, 0.0
        assert (await ask(only, "ann"))["variant"] == "b"
        cannot_start.append(True)
        engine.kill()
        await falls_back("engine")
        cannot_start.clear()
        await only.until(lambda: experiments.challenger.serving is not None)
        assert (await ask(only, "ann"))["variant"] == "b"  # rebuilt
        fallbacks = (await running(only))["variants"]["b"]["fallbacks"]
        assert fallbacks == 5
        # A request that B cannot take is answered, or refused, by A.
        await call(only, "POST", "/recommend", 422, json={"user_id": "ann", "context": "a gift"})


async def test_changes_reach_both_bundles(shelf, clean_redis, tmp_path):
    _, two = await ids_of(shelf)
    async with replicas(shelf, clean_redis.url, tmp_path) as made:
        first, second = made
        await call(first, "PUT", "/items/sku-0", 201, json=LAMP)  # before the experiment
        await call(first, "DELETE", "/items/item-3", 200)
        await begin(first, two)
        await call(first, "PUT", "/items/sku-1", 201, json=LAMP)
        await call(second, "DELETE", "/items/item-6", 200)
        await call(second, "PATCH", "/items/item-4", 200, json={"available": False})

        async def ids(replica, variant):
            answer = await ask(replica, "ann", k=60, variant=variant)
            assert answer["variant"] == variant
            return {item["item_id"] for item in answer["items"]}

        for variant in "ab":  # tombstones at once where they were made
            assert not {"item-3", "item-4", "item-6"} & await ids(second, variant)
        async with asyncio.timeout(10):
            for replica in made:
                for variant in "ab":
                    while not {"sku-0", "sku-1"} <= (found := await ids(replica, variant)):
                        await asyncio.sleep(0.02)
                    assert not {"item-3", "item-4", "item-6"} & found
                    assert ("item-44" in found) == (variant == "b")
        # A change that was committed but not carried (its replica died) is carried by another one.
        serving = first.current.serving
        from service.catalogue import Delete

        await serving.catalogue.write([Delete("item-7")])
        async with asyncio.timeout(10):
            while "item-7" in await ids(second, "b"):
                await asyncio.sleep(0.02)


async def test_a_restart_goes_on_with_the_experiment(shelf, clean_redis, tmp_path):
    _, two = await ids_of(shelf)
    async with replicas(shelf, clean_redis.url, tmp_path, 1) as (only,):
        await begin(only, two)
        before = {n: (await ask(only, f"user-{n}"))["variant"] for n in range(20)}
    async with replicas(shelf, clean_redis.url, tmp_path, 1) as (only,):
        # Ready means: B is open, too.
        after = {n: (await ask(only, f"user-{n}"))["variant"] for n in range(20)}
        assert before == after and set(after.values()) == {"a", "b"}
        numbers = (await running(only))["variants"]
        assert sum(each["answers"] for each in numbers.values()) == 40  # none was lost on the way


async def test_promoting_makes_b_the_active_bundle_and_loses_nobody(shelf, clean_redis, tmp_path):
    one, two = await ids_of(shelf)
    async with replicas(shelf, clean_redis.url, tmp_path) as made:
        first, second = made
        experiment_id = (await begin(first, two))["experiment_id"]
        engines = [len(replica.engines) for replica in made]
        stop, failures = asyncio.Event(), []

        async def keep_asking(replica, number):
            while not stop.is_set():
                response = await replica.client.post(
                    "/recommend", json={"user_id": f"user-{number}", "history": ["item-5"]}
                )
                answer = response.json()
                if response.status_code != 200 or answer["degraded"] or len(answer["items"]) != 10:
                    failures.append(answer)

        asking = [asyncio.create_task(keep_asking(r, n)) for n, r in enumerate([*made, *made])]
        await call(second, "PUT", "/items/sku-1", 201, json=LAMP)
        path = f"/admin/experiments/{experiment_id}/promote"
        assert (await call(second, "POST", path, 200, params={"wait_s": 30}))["state"] == "done"
        await served_by_all(made, two)
        await asyncio.sleep(0.2)
        stop.set()
        await asyncio.gather(*asking)
        assert not failures
        assert [len(replica.engines) for replica in made] == engines  # B's engine went on
        answer = await ask(first, "user-1", k=60)
        assert answer["bundle_id"] == two and answer["variant"] is None
        assert "sku-1" in {item["item_id"] for item in answer["items"]}
        listed = await call(first, "GET", "/admin/experiments", 200)
        assert listed["running"] is None and listed["ended"][0]["outcome"] == "promoted"
        assert await call(first, "POST", "/admin/bundles/rollback", 200, params={"wait_s": 30})
        await served_by_all(made, one)


async def test_stopping_lets_b_finish_what_it_answers(shelf, clean_redis, tmp_path):
    _, two = await ids_of(shelf)
    async with replicas(shelf, clean_redis.url, tmp_path, 1) as (only,):
        experiment_id = (await begin(only, two, share=1))["experiment_id"]
        engine = only.engines[-1]
        engine.delay_s = 0.8
        in_flight = [asyncio.create_task(ask(only, f"user-{n}")) for n in range(5)]
        await only.until(lambda: len(engine.requests) >= 6)  # and the canary
        await call(only, "POST", f"/admin/experiments/{experiment_id}/stop", 200)
        await only.until(lambda: only.app.state.services.experiments.running is None)
        assert not engine.is_closed
        assert {answer["bundle_id"] for answer in await asyncio.gather(*in_flight)} == {two}
        await only.until(lambda: engine.is_closed)
        assert (await ask(only, "user-1"))["variant"] is None


async def test_what_cannot_be_done_is_a_sentence(shelf, clean_redis, tmp_path):
    one, two = await ids_of(shelf)

    def prepare(engine):
        if engine.bundle.bundle_id == two:
            engine.start_error = RuntimeError("no memory for a second model")

    async with replicas(shelf, clean_redis.url, tmp_path, 1, prepare=prepare) as (only,):
        failed = await begin(only, two, status=503)
        assert failed["state"] == "failed" and "no memory" in failed["detail"]
        assert (await running(only)) is None
    async with replicas(shelf, clean_redis.url, tmp_path, 2, api_key="k" * 16) as (only, other):
        assert "is the active one" in (await begin(only, one, status=409))["error"]
        assert "no bundle" in (await begin(only, "f" * 16, status=404))["error"]
        assert "'share' must" in (await begin(only, two, share=1.5, status=422))["error"]
        forced = {"history": ["item-5"], "variant": "b"}
        answer = await call(only, "POST", "/recommend", 200, json=forced)
        assert (answer["variant"], answer["assigned_variant"], answer["bundle_id"]) == ("a", "b", one)
        experiment_id = (await begin(only, two))["experiment_id"]
        assert "stop it first" in (await begin(other, two, status=409))["error"]
        gone = await call(only, "POST", "/admin/experiments/00000000/stop", 404)
        assert "no experiment 00000000 is running" in gone["error"]
        reader = {"X-API-Key": "k" * 16}
        await call(only, "GET", "/admin/experiments", 403, headers=reader)
        assert (await call(only, "POST", "/recommend", 200, json=forced, headers=reader))["variant"] == "b"
        await call(other, "POST", f"/admin/experiments/{experiment_id}/stop", 200)
        assert only.client.headers["X-API-Key"] == KEY
