"""POST /recommend/batch: every request answered once, alone, as soon as it is ready."""

from __future__ import annotations

import asyncio
import json

import pytest

pytestmark = pytest.mark.anyio


async def ask(running, requests, status: int = 200):
    response = await running.client.post("/recommend/batch", json={"requests": requests})
    assert response.status_code == status, response.text
    if status != 200:
        return response.json()
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


async def test_every_request_gets_the_answer_that_it_would_get_alone(start_app):
    requests = [{"history": [f"item-{n}"], "k": 1 + n % 5, "exclude_seen": n % 2 == 0} for n in range(20)]
    async with start_app() as running:
        lines = await ask(running, requests)
        assert sorted(line["index"] for line in lines) == list(range(20))
        for line in lines:
            assert "error" not in line
            alone = (await running.client.post("/recommend", json=requests[line["index"]])).json()
            assert line["response"]["items"] == alone["items"]


async def test_a_request_that_fails_leaves_the_others_alone(start_app):
    async with start_app(max_k=5) as running:
        lines = await ask(running, [{"history": ["item-3"], "k": 9}, {"history": ["item-3"], "k": 2}])
        bad, good = sorted(lines, key=lambda line: line["index"])
        assert bad["status"] == 422 and bad["error"]["error_type"] == "request_error"
        assert "'k' must be at most 5, got 9" in bad["error"]["error"]
        assert bad["error"]["request_id"].endswith(".0")
        assert len(good["response"]["items"]) == 2


async def test_a_request_that_takes_too_long_says_so_on_its_line(start_app):
    async with start_app(request_deadline_s=0.05) as running:
        running.engine.delay_s = 5
        (line,) = await ask(running, [{"history": ["item-3"]}])
        assert line["status"] == 504 and line["error"]["error_type"] == "deadline_exceeded"


@pytest.mark.parametrize("requests", [[], [{"k": 1}] * 257, [{"k": 0}], [{"nonsense": 1}]])
async def test_a_malformed_batch_is_refused_as_a_whole(start_app, requests):
    async with start_app() as running:
        body = await ask(running, requests, status=422)
        assert "requests" in body["error"]


async def test_a_caller_that_hangs_up_stops_the_work(serve_app, fake_engine):
    import httpx

    with serve_app() as url:
        fake_engine.delay_s = 30
        async with httpx.AsyncClient(base_url=url) as client:
            body = {"requests": [{"history": ["item-3"]}] * 3}
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/recommend/batch", json=body, timeout=0.3)
        async with asyncio.timeout(10):
            while fake_engine.num_cancelled < 3:
                await asyncio.sleep(0.02)
