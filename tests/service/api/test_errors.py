"""Every refusal: its status, its one form, and a sentence that a person can act on."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from service.errors import EngineDead, EngineError

pytestmark = pytest.mark.anyio


async def refused(running, status: int, **request) -> dict[str, str]:
    response = await running.client.request(**{"method": "POST", "url": "/recommend", **request})
    body = response.json()
    assert response.status_code == status, body
    assert body.keys() == {"error", "error_type", "request_id"}
    assert body["request_id"] == response.headers["x-request-id"]
    return body


BAD_BODIES = [
    ({"k": 0}, "'k' must be at least 1, got 0"),
    ({"k": 201}, "'k' must be at most 200, got 201"),
    ({"k": 2.5}, "'k' must be a whole number, got 2.5"),
    ({"k": "7"}, "'k' must be a whole number, got \"7\""),
    ({"k": True}, "'k' must be a whole number, got true"),
    ({"k": None}, "'k' must be a whole number, got null"),
    ({"beam_width": 0}, "'beam_width' must be at least 1, got 0"),
    ({"beam_width": 513}, "'beam_width' must be at most 512, got 513"),
    ({"history": "item-1"}, "'history' must be a list, got \"item-1\""),
    ({"history": [1]}, "'history[0]' must be a JSON object, got 1"),
    ({"history": [""]}, "'history[0].item_id' must have at least 1 character(s), got \"\""),
    ({"history": [{"id": 3}]}, "'history[0].item_id' is missing; 'history[0].id' is not a field"),
    ({"history": ["a" * 257]}, "'history[0].item_id' must have at most 256 characters"),
    ({"history": [{"item_id": "a", "timestamp": "2026-01-01"}]}, "must have a time zone"),
    ({"history": [{"item_id": "a", "timestamp": "soon"}]}, "'history[0].timestamp' is not accepted"),
    ({"history": [{"item_id": "a", "timestamp": 1.7e12}]}, "a number must be seconds since 1970"),
    ({"history": [{"item_id": "a", "timestamp": True}]}, "'history[0].timestamp' is not accepted"),
    ({"history": [{"item_id": "a", "timestamp": 1}, "b"]}, "every element of 'history' has a timestamp, or"),
    ({"exclude_seen": "yes"}, "'exclude_seen' must be true or false"),
    ({"exclude_items": [3]}, "'exclude_items[0]' must be a string, got 3"),
    ({"histroy": ["item-1"]}, "'histroy' is not a field of this request"),
    ({"k": 0, "a": 1, "b": 2, "c": 3, "d": 4}, "and 2 more problems"),
    ([], "the body must be a JSON object, got []"),
]


async def test_malformed_requests_get_422_with_a_sentence(start_app):
    async with start_app() as running:
        for body, sentence in BAD_BODIES:
            answer = await refused(running, 422, json=body)
            assert sentence in answer["error"], body


RAW_BODIES = [
    b"",
    b"{",
    b"\xff\xfe",
    b"null",
    b"NaN",
    b'{"k": 1e999}',
    b'{"k": NaN}',
    b'{"history": [{"item_id": "a", "timestamp": NaN}]}',
    b'{"history": [{"item_id": "a", "timestamp": 1e300}]}',
    b'{"history": ["\\ud800"]}',
    b'{"history": ["a"], "\\ud800": 1}',
    b"[" * 20_000,
    b'{"k": ' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("raw", RAW_BODIES, ids=[str(raw[:30]) for raw in RAW_BODIES])
async def test_no_bytes_make_a_500(start_app, raw):
    async with start_app() as running:
        body = await refused(running, 422, content=raw, headers={"content-type": "application/json"})
        assert body["error_type"] == "validation_error"


async def test_limits_from_the_settings_are_named(start_app):
    async with start_app(max_history=3, max_exclude=2, max_k=20) as running:
        body = await refused(running, 422, json={"history": ["a"] * 4})
        assert "'history' has 4 elements, at most 3 are accepted" in body["error"]
        assert body["error_type"] == "history_too_long"
        body = await refused(running, 422, json={"exclude_items": ["a"] * 3})
        assert "'exclude_items' has 3 elements, at most 2" in body["error"]
        assert "'k' must be at most 20" in (await refused(running, 422, json={"k": 21}))["error"]


async def test_large_bodies_get_413_declared_or_not(start_app):
    async with start_app(max_body_bytes=2048) as running:
        body = await refused(running, 413, content=b"x" * 3000)
        assert body["error_type"] == "body_too_large" and "2048 bytes" in body["error"]

        async def chunks():
            for _ in range(10):
                yield b'{"history": [' + b" " * 500

        await refused(running, 413, content=chunks(), headers={"content-type": "application/json"})


async def test_unknown_paths_and_methods(start_app):
    async with start_app() as running:
        assert (await refused(running, 404, url="/nowhere"))["error_type"] == "not_found"
        assert (await refused(running, 405, method="GET"))["error_type"] == "method_not_allowed"
        body = await refused(running, 404, method="GET", url="/items/nobody")
        assert "no item with this id" in body["error"]


async def test_overload_is_429_with_retry_after_and_passes(start_app):
    async with start_app(max_inflight_beam_rows=64, max_beam_width=64) as running:
        running.engine.delay_s = 0.5
        wide = {"history": ["item-1"], "beam_width": 40}
        first = asyncio.create_task(running.client.post("/recommend", json=wide))
        await running.until(lambda: any(r.beam_width == 40 for r in running.engine.requests))
        response = await running.client.post("/recommend", json=wide)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error_type"] == "engine_overloaded"
        assert (await first).status_code == 200
        assert (await running.client.post("/recommend", json=wide)).status_code == 200


async def test_deadline_is_504_and_cancels_the_engines_work(start_app):
    async with start_app(request_deadline_s=0.1) as running:
        running.engine.delay_s = 30
        body = await refused(running, 504, json={"history": ["item-1"]})
        assert body["error_type"] == "deadline_exceeded" and "0.1 s" in body["error"]
        assert running.engine.num_cancelled == 1
        running.engine.delay_s = 0
        response = await running.client.post("/recommend", json={"history": ["item-1"], "beam_width": 512})
        assert response.status_code == 200  # the cancelled one holds no beams any more


async def test_a_client_that_leaves_cancels_the_engines_work(start_app):
    async with start_app() as running:
        running.engine.delay_s = 30
        arrived = [{"type": "http.request", "body": b'{"history": ["item-1"]}', "more_body": False}]

        async def receive():
            if arrived:
                return arrived.pop()
            await running.until(lambda: len(running.engine.requests) == 2)  # the canary and this one
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/recommend",
            "raw_path": b"/recommend",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await asyncio.wait_for(running.app(scope, receive, send), 5)
        assert running.engine.num_cancelled == 1


@pytest.mark.parametrize(
    ("error", "status", "error_type"),
    [
        (EngineError("decoding failed"), None, None),
        (EngineDead("gone"), None, None),
        (ZeroDivisionError(), 500, "internal_error"),
    ],
)
async def test_what_the_engine_raises_is_bridged_unless_it_is_a_bug(start_app, error, status, error_type):
    async with start_app() as running:
        running.engine.decode_error = error
        request = {"history": ["item-1"], "k": 39, "exclude_items": ["item-3"]}
        if status is not None:
            body = await refused(running, status, json=request)
            assert body["error_type"] == error_type
            return
        answer = (await running.client.post("/recommend", json=request)).json()
        assert answer["degraded"] and {item["source"] for item in answer["items"]} == {"popular"}
        assert {item["item_id"] for item in answer["items"]} == {f"item-{n}" for n in range(40) if n != 3}


async def test_api_key(start_app):
    key = "0123456789abcdef"
    async with start_app(api_key=key, host="0.0.0.0") as running:
        body = await refused(running, 401, json={})
        assert body["error_type"] == "unauthorized" and "Bearer" in body["error"]
        wrong = {"authorization": "Bearer wrong-wrong-wrong"}
        assert (await refused(running, 403, json={}, headers=wrong))["error_type"] == "forbidden"
        await refused(running, 403, json={}, headers={"x-api-key": "schl\u00fcssel".encode()})
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
            assert (await running.client.post("/recommend", json={}, headers=headers)).status_code == 200
        for path in ("/info", "/items", "/items/item-1"):
            await refused(running, 401, method="GET", url=path)
        for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/metrics", "/static/page.js"):
            assert (await running.client.get(path)).status_code == 200, path


async def test_every_answer_carries_id_stages_and_security_headers(start_app):
    async with start_app() as running:
        headers = {"x-request-id": "my-id.1"}
        good = await running.client.post("/recommend", json={"history": ["item-1"]}, headers=headers)
        assert good.headers["x-request-id"] == "my-id.1"
        assert float(good.headers["x-stage-decode-ms"]) >= 0
        evil = await running.client.get("/livez", headers={"x-request-id": "a b"})
        assert evil.headers["x-request-id"] != "a b"
        missing = await running.client.get("/nowhere")
        for response in (good, evil, missing):
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert response.headers["x-content-type-options"] == "nosniff"
            assert isinstance(response, httpx.Response)
