"""The client against the running service, and against a service that fails first."""

from __future__ import annotations

import time

import httpx
import pytest

from service.client import AsyncClient, Client, ServiceError


def test_the_whole_api_over_a_real_port(serve_app):
    with serve_app() as url, Client(url) as client:
        answer = client.recommend(history=["item-5", "item-9"], k=4, exclude_seen=True)
        assert len(answer.items) == 4
        assert not {"item-5", "item-9"} & {item.item_id for item in answer.items}
        assert client.info().bundle_id == answer.bundle_id
        assert client.readiness().ready
        assert client.item("item-7").title == "White desk No. 7"
        assert "item-9" in {item.item_id for item in client.search("blue chair").items}
        lines = list(
            client.recommend_batch([{"history": [f"item-{n}", "no\u2028line"], "k": 1} for n in range(9)])
        )
        assert sorted(line.index for line in lines) == list(range(9))
        assert all(line.response and len(line.response.items) == 1 for line in lines)


def test_the_catalogue_can_be_changed(serve_app):
    with serve_app() as url, Client(url) as client:
        assert client.similar("item-9", k=3).items[0].item_id != "item-9"
        before = client.item("item-9")
        written = client.patch_item("item-9", metadata={"colour": "green"})
        assert not written.created and written.semantic_id == before.semantic_id
        assert client.item("item-9").metadata["colour"] == "green"
        report = client.load_items(
            [{"op": "delete", "item_id": "item-5"}, {"op": "delete", "item_id": "item-6"}]
        )
        assert report.num_written == 2
        with pytest.raises(ServiceError):
            client.item("item-5")
        left = {item.item_id for item in client.recommend(history=["item-9"], k=40).items}
        assert "item-5" not in left and "item-6" not in left


def test_events_make_the_history_of_a_user(serve_app):
    with serve_app() as url, Client(url) as client:
        events = [
            {"user_id": "ann/b", "item_id": f"item-{n}", "type": "view", "timestamp": time.time() - 60 + n}
            for n in (5, 9)
        ]
        assert client.send_events(events).recorded == 2
        assert client.send_events(events).duplicates == 2  # safe to repeat
        assert [event.item_id for event in client.history("ann/b").events] == ["item-5", "item-9"]
        by_user = client.recommend(user_id="ann/b", k=3)
        assert by_user.items == client.recommend(history=["item-5", "item-9"], k=3).items
        assert client.forget("ann/b").events == 2
        assert client.history("ann/b").events == []


@pytest.mark.anyio
async def test_the_async_client_answers_the_same(serve_app):
    with serve_app() as url:
        async with AsyncClient(url) as client:
            answer = await client.recommend(history=["item-5"], k=4)
            with Client(url) as blocking:
                assert blocking.recommend(history=["item-5"], k=4).items == answer.items
            lines = [line async for line in client.recommend_batch([{"history": ["item-5", "\x85"], "k": 4}])]
            assert lines[0].response and lines[0].response.unknown_items == ["\x85"]
            assert lines[0].response.items == answer.items
            with pytest.raises(ServiceError) as caught:
                await client.item("nobody")
            assert caught.value.status == 404 and caught.value.request_id


def test_a_refusal_carries_the_services_sentence_and_is_not_repeated(serve_app):
    with serve_app(api_key="0123456789abcdef") as url:
        with Client(url) as client, pytest.raises(ServiceError, match="API key is needed") as caught:
            client.recommend(history=["item-5"])
        assert caught.value.status == 401
        with Client(url, api_key="0123456789abcdef") as client:
            assert client.recommend(history=["item-5"]).items


class Flaky(httpx.BaseTransport):
    """Fails so many times, then answers."""

    def __init__(self, *failures: httpx.Response | Exception) -> None:
        self.failures = list(failures)
        self.num_asked = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.num_asked += 1
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        return httpx.Response(200, json={"ready": True, "reasons": [], "engine": "", "catalogue": ""})


def test_overload_and_lost_connections_are_retried():
    overloaded = httpx.Response(429, headers={"Retry-After": "1"}, json={})
    transport = Flaky(httpx.ConnectError("refused"), overloaded, httpx.Response(503, text="no"))
    began = time.monotonic()
    with Client("http://test", transport=transport) as client:
        assert client.readiness().ready
    assert transport.num_asked == 4
    assert time.monotonic() - began >= 1  # as asked by Retry-After


@pytest.mark.parametrize(
    "failure", [httpx.ConnectError("refused"), httpx.Response(503, json={}), httpx.Response(429, json={})]
)
def test_the_deadline_ends_the_retries(failure):
    transport = Flaky(*[failure] * 1000)
    began = time.monotonic()
    with Client("http://test", transport=transport, deadline_s=0.5) as client, pytest.raises(ServiceError):
        client.readiness()
    assert 1 < transport.num_asked < 100
    assert time.monotonic() - began < 2
