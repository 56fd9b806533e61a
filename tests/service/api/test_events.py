"""Events in, histories out, recommendations from them, and nothing left of a user who is deleted."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from service.events import recorder
from service.observability import metrics

pytestmark = pytest.mark.anyio


def event(number: int, user_id: str = "ann", **fields) -> dict:
    moment = datetime.fromtimestamp(time.time() - 1000 + number, UTC)
    return {
        "user_id": user_id,
        "item_id": f"item-{number}",
        "type": "click",
        "event_id": f"e{number}",
        "timestamp": moment.isoformat(),
        **fields,
    }


async def post(running, *events, status: int = 200, **headers):
    answers = []
    for one in events:
        response = await running.client.post("/events", json=one, headers=headers)
        assert response.status_code == status, response.text
        answers.append(response.json())
    return answers[-1]


async def history(running, user_id: str = "ann", **query) -> list[str]:
    response = await running.client.get(f"/users/{user_id}/history", params=query)
    assert response.status_code == 200, response.text
    return [one["item_id"] for one in response.json()["events"]]


async def recommend(running, **body) -> dict:
    response = await running.client.post("/recommend", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def until_synced(running) -> None:
    await running.until(lambda: running.services.events._is_synced)


async def replayed(running) -> None:
    await running.until(lambda: running.services.events._buffer.num_bytes() == 0, 20)


async def test_events_become_the_history_that_is_recommended_from(start_app):
    async with start_app() as running:
        await until_synced(running)
        answer = await post(running, event(9), event(5), event(7, type="impression"))
        assert answer == {"event_id": "e7", "duplicate": False, "expired": False, "buffered": False}
        assert await history(running) == ["item-5", "item-7", "item-9"]
        assert await history(running, limit=1) == ["item-9"]
        told = await recommend(running, history=["item-5", "item-9"], k=6)
        stored = await recommend(running, user_id="ann", k=6)
        assert stored["items"] == told["items"] and not stored["degraded"]
        assert stored["timings"]["history"] > 0
        unseen = await recommend(running, user_id="ann", k=40, exclude_seen=True)
        assert {"item-5", "item-9"}.isdisjoint(item["item_id"] for item in unseen["items"])
        # A history that is sent wins, an empty one included.
        assert (await recommend(running, user_id="ann", history=[]))["items"][0]["source"] == "popular"
        assert (await recommend(running, user_id="nobody"))["items"][0]["source"] == "popular"


async def test_hidden_items_are_not_recommended_to_this_user(start_app):
    async with start_app() as running:
        await post(running, event(9), event(10, type="hide"))
        mine = await recommend(running, user_id="ann", k=40)
        assert "item-10" not in {item["item_id"] for item in mine["items"]} and len(mine["items"]) == 39


async def test_an_event_sent_twice_counts_once(start_app):
    async with start_app() as running:
        await until_synced(running)
        assert not (await post(running, event(3)))["duplicate"]
        assert (await post(running, event(3, item_id="item-8")))["duplicate"]
        assert not (await post(running, event(3, user_id="bob")))["duplicate"]  # ids are per user
        unnamed = event(4)
        del unnamed["event_id"]
        first, second = await post(running, unnamed), await post(running, unnamed)
        assert first["event_id"] == second["event_id"] and second["duplicate"]
        undated = {"user_id": "ann", "item_id": "item-4", "type": "view"}
        assert (await post(running, undated))["event_id"] != (await post(running, undated))["event_id"]
        assert await history(running) == ["item-3", "item-4", "item-4", "item-4"]


async def test_history_is_bounded_by_number_and_by_age(start_app, clean_redis):
    async with start_app(event_history=3, event_retention_days=1) as running:
        await until_synced(running)
        await post(running, *(event(number) for number in (1, 4, 2, 3, 5)))
        assert await history(running) == ["item-3", "item-4", "item-5"]
        old = await post(running, event(6, timestamp=time.time() - 25 * 3600))
        assert old["expired"]
        assert await history(running) == ["item-3", "item-4", "item-5"]
        with redis.Redis.from_url(clean_redis.url) as client:
            keys = client.keys("gtirec:v1:user:*")
            assert len(keys) == 2
            assert all(0 < client.ttl(key) <= 24 * 3600 for key in keys)
            assert client.hlen(next(key for key in keys if b":events" in key)) == 3


async def test_a_date_in_the_future_counts_as_now(start_app):
    async with start_app() as running:
        await post(running, event(1, timestamp=time.time() + 1e8))
        await asyncio.sleep(0.01)
        await post(running, {"user_id": "ann", "item_id": "item-2", "type": "view"})
        assert await history(running) == ["item-1", "item-2"]


async def test_bulk_keeps_the_good_lines_and_names_the_bad_ones(start_app):
    lines = [json.dumps(event(number)) for number in range(1200)]
    lines[10:10] = ["", "{", json.dumps({**event(1), "type": "think"}), "[" * 5000]
    async with start_app() as running:
        await until_synced(running)
        for counts in ((1200, 0, 0), (0, 500, 700)):  # 500 are kept
            response = await running.client.post("/events/bulk", content="\n".join(lines))
            assert response.status_code == 200, response.text
            answer = response.json()
            assert (answer["recorded"], answer["duplicates"], answer["expired"]) == counts
            assert answer["rejected"] == 3
            assert [problem["line"] for problem in answer["problems"]] == [12, 13, 14]
            assert "'type'" in answer["problems"][1]["error"]
        assert len(await history(running, limit=1000)) == 500


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body holds no line"),
        (b"\n \n", "the body holds no line"),
        (b"[]", "no line could be used: line 1"),
        (b'{"user_id": "\\ud800", "item_id": "a", "type": "view"}', "line 1"),
        (b"\xff\xff\n", "line 1"),
        (b" " * 70_000 + b"\n", "line 1 is longer than 65536 bytes"),
        (b"\n" + b"x" * 70_000, "line 2 is longer than 65536 bytes"),
    ],
)
async def test_bulk_without_a_good_line_is_422(start_app, body, sentence):
    async with start_app() as running:
        response = await running.client.post("/events/bulk", content=body)
        assert response.status_code == 422 and sentence in response.json()["error"], response.text


async def test_bulk_has_its_own_size_limit(start_app):
    async with start_app(max_body_bytes=1024, max_bulk_bytes=100_000) as running:
        big = "\n".join(json.dumps(event(number)) for number in range(100))
        assert len(big) > 10_000
        assert (await running.client.post("/events/bulk", content=big)).status_code == 200
        assert (await running.client.post("/events/bulk", content=big * 10)).status_code == 413


async def test_bad_events_are_refused_with_a_sentence(start_app):
    async with start_app() as running:
        for change, sentence in [
            ({"type": "think"}, "'type' is not accepted"),
            ({"user_id": ""}, "'user_id' must have at least 1"),
            ({"user_id": "a\nb"}, "'user_id' must match"),
            ({"user_id": "a" * 257}, "'user_id' must have at most 256"),
            ({"timestamp": "yesterday"}, "'timestamp' is not accepted"),
            ({"price": 3}, "'price' is not a field"),
        ]:
            answer = await post(running, event(1, **change), status=422)
            assert sentence in answer["error"], answer


async def test_events_are_credited_to_the_bundle_that_recommended(start_app, small_bundle):
    async with start_app() as running:
        await until_synced(running)
        count = metrics.ATTRIBUTED_EVENTS.labels(
            bundle_id=small_bundle.bundle_id, variant="a", kind="purchase"
        )._value
        other = metrics.ATTRIBUTED_EVENTS.labels(bundle_id="other", variant="", kind="purchase")._value
        before, before_other = count.get(), other.get()
        answer = await recommend(running, history=["item-1"])
        bought = {"type": "purchase", "recommendation_id": answer["recommendation_id"]}
        await post(running, event(1, **bought), event(1, **bought))  # the second is a repetition
        await post(running, event(2, type="purchase", recommendation_id="made up"))
        assert (count.get() - before, other.get() - before_other) == (1, 1)


# --- Redis away ---------------------------------------------------------------------------------


async def test_without_redis_events_wait_on_disk_and_histories_degrade(start_app, clean_redis, tmp_path):
    async with start_app() as running:
        await until_synced(running)
        await post(running, event(1))
        clean_redis.kill()
        assert (await post(running, event(2), event(3)))["buffered"]
        bulk = "\n".join(json.dumps(event(number)) for number in (3, 4))
        answer = (await running.client.post("/events/bulk", content=bulk)).json()
        assert answer["recorded"] == 2 and answer["buffered"]
        assert len(list((tmp_path / "events").rglob("*.ndjson"))) == 1
        response = await running.client.get("/users/ann/history")
        assert response.status_code == 503 and "Redis is away" in response.json()["error"]
        assert (await running.client.delete("/users/ann")).status_code == 503
        cold = await recommend(running, user_id="ann")
        assert cold["degraded"] and {item["source"] for item in cold["items"]} == {"popular"}
        warm = await recommend(running, user_id="ann", history=["item-1"])
        assert warm["degraded"] and warm["items"][0]["source"] == "model"
        clean_redis.start()
        await running.until(lambda: running.services.catalogue.status.state == "ready", 20)
        await replayed(running)
        assert await history(running) == ["item-1", "item-2", "item-3", "item-4"]


async def test_what_a_dead_service_left_in_its_buffer_is_replayed_by_the_next(start_app, clean_redis):
    async with start_app() as running:
        clean_redis.kill()
        await post(running, event(1))
    clean_redis.start()
    async with start_app() as running:
        await running.until(lambda: not list(running.services.events._buffer._root.rglob("*.ndjson")), 20)
        assert await history(running) == ["item-1"]


async def test_a_redis_that_does_not_sync_is_fed_through_the_buffer(start_app, clean_redis, monkeypatch):
    monkeypatch.setattr(recorder, "UNSYNCED_S", 0.6)
    with redis.Redis.from_url(clean_redis.url) as client:
        client.config_set("appendfsync", "everysec")
        try:
            async with start_app() as running:
                assert (await post(running, event(1)))["buffered"]
                while await history(running) != ["item-1"]:
                    await asyncio.sleep(0.02)
                assert running.services.events._buffer.num_bytes() > 0  # not before Redis has synced
                await replayed(running)
        finally:
            client.config_set("appendfsync", "always")


async def test_a_redis_that_refuses_writes_is_bridged_by_the_buffer(start_app, clean_redis):
    with redis.Redis.from_url(clean_redis.url) as client:
        async with start_app() as running:
            await until_synced(running)
            await post(running, event(1))
            client.config_set("maxmemory", 1)
            try:
                assert (await post(running, event(2)))["buffered"]
                assert running.services.catalogue.status.state == "ready"
                assert await history(running) == ["item-1"]
            finally:
                client.config_set("maxmemory", 0)
            await replayed(running)
            assert await history(running) == ["item-1", "item-2"]


# --- forgetting ---------------------------------------------------------------------------------


def everything(url: str, *directories: Path) -> bytes:
    """All of Redis, keys and values, and all files that the service writes itself."""
    parts = []
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter():
            kind = client.type(key).decode()
            read = {
                "string": client.get,
                "hash": client.hgetall,
                "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
                "stream": client.xrange,
                "set": client.smembers,
                "list": lambda key: client.lrange(key, 0, -1),
            }[kind]
            parts.append(key + repr(read(key)).encode())
    parts += [
        path.read_bytes() for directory in directories for path in directory.rglob("*") if path.is_file()
    ]
    return b"\n".join(parts)


async def test_nothing_is_left_of_a_deleted_user(start_app, clean_redis, tmp_path, caplog):
    secret = "ann-4711"
    async with start_app() as running:
        await until_synced(running)
        await post(running, event(1, secret, event_id=f"{secret}-order"), event(2, "bob"))
        await recommend(running, user_id=secret)
        clean_redis.kill()
        await post(running, event(3, secret), event(4, "bob"))
        clean_redis.start()
        await running.until(lambda: running.services.catalogue.status.state == "ready", 20)
        assert secret.encode() in everything(clean_redis.url, tmp_path / "events")
        response = await running.client.delete(f"/users/{secret}")
        assert response.status_code == 200 and response.json()["events"] >= 1
        assert secret.encode() not in everything(clean_redis.url, tmp_path / "events")
        await replayed(running)
        assert secret.encode() not in everything(clean_redis.url, tmp_path / "events")
        assert await history(running, secret) == []
        assert await history(running, "bob") == ["item-2", "item-4"]
        assert (await running.client.delete(f"/users/{secret}")).json()["events"] == 0
        # Whoever comes back is a new user.
        await post(running, event(5, secret))
        assert await history(running, secret) == ["item-5"]
        assert secret not in caplog.text
        assert secret not in (await running.client.get("/metrics")).text


async def test_another_replicas_buffer_cannot_bring_a_deleted_user_back(start_app, clean_redis, tmp_path):
    async with start_app(data_dir=tmp_path / "a") as cut_off, start_app(data_dir=tmp_path / "b") as other:
        await until_synced(other)
        await post(other, event(1))
        clean_redis.kill()
        await post(cut_off, event(2), event(3, "bob"))
        cut_off.services.events._tasks[1].cancel()  # cut off for long
        clean_redis.start()
        await other.until(lambda: other.services.catalogue.status.state == "ready", 20)
        assert (await other.client.delete("/users/ann")).status_code == 200
        cut_off.services.events.start()
        await replayed(cut_off)
        assert await history(other) == [] and await history(other, "bob") == ["item-3"]


async def test_user_ids_are_any_text(start_app):
    async with start_app() as running:
        for user_id in ("a/b", "a{b}c", "\u00e4 \U0001f600", "*", "..%2f", "history", "x/history"):
            await post(running, event(1, user_id))
            from urllib.parse import quote

            path = f"/users/{quote(user_id, safe='')}"
            response = await running.client.get(f"{path}/history")
            assert [one["item_id"] for one in response.json()["events"]] == ["item-1"], user_id
            assert response.json()["user_id"] == user_id
            assert (await running.client.delete(path)).json() == {"user_id": user_id, "events": 1}
