"""A typed client of the service, blocking and async, with retries and deadlines.

    with Client("http://localhost:8000") as client:
        answer = client.recommend(history=["item-17", "item-204"], k=5)
        client.send_events([{"user_id": "ann", "item_id": "item-9", "type": "view"}])

Every call is safe to repeat (events carry an id, writes say the whole item), so calls are repeated
while the service is unreachable, overloaded (429, after the time it names) or not ready (503), until
the deadline is over. Answers are the service's own models. Needs `httpx`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Literal, Unpack

import httpx

from service import client_calls as calls
from service.api.event_models import BulkAnswer, Erased, UserHistory
from service.api.info_models import Info, Readiness
from service.api.item_models import BulkReport, SimilarItems, WrittenItem
from service.api.models import BatchLine, Item, ItemList, RecommendResponse
from service.client_calls import (
    Answer,
    Attempts,
    Call,
    EventFields,
    ItemFields,
    ItemLine,
    RecommendOptions,
    ServiceError,
)

__all__ = [
    "AsyncClient",
    "Client",
    "EventFields",
    "ItemFields",
    "ItemLine",
    "RecommendOptions",
    "ServiceError",
]


class Client:
    """Blocking client; safe to share between threads.

    Args:
        url: where the service is.
        api_key: key to send, where one is needed.
        deadline_s: seconds until a call is given up, retries included; per call it can be changed.
        transport: for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        deadline_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._deadline_s = deadline_s
        self._http = httpx.Client(base_url=url, headers=_key(api_key), transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections."""
        self._http.close()

    def recommend(
        self, *, deadline_s: float | None = None, **options: Unpack[RecommendOptions]
    ) -> RecommendResponse:
        """Items for one user. Raises ServiceError, like every call."""
        return self._send(calls.recommend(options), deadline_s)

    def recommend_batch(
        self, requests: Iterable[RecommendOptions], *, deadline_s: float | None = None
    ) -> Iterator[BatchLine]:
        """Items for up to 256 users, in the order of finishing; a started stream is not repeated."""
        call, attempts = calls.recommend_batch(requests), Attempts(deadline_s or self._deadline_s)
        while True:
            try:
                with self._http.stream(**call.arguments(attempts.left_s)) as reply:
                    if reply.is_success:
                        lines = calls.BatchLines()
                        for chunk in reply.iter_bytes():
                            yield from lines.add(chunk)
                        return
                    reply.read()
                    outcome: httpx.Response | httpx.TransportError = reply
            except httpx.ConnectError as error:
                outcome = error
            time.sleep(attempts.pause_after(outcome))

    def send_events(self, events: Iterable[EventFields], *, deadline_s: float | None = None) -> BulkAnswer:
        """Record what users did."""
        return self._send(calls.send_events(events), deadline_s)

    def history(self, user_id: str) -> UserHistory:
        """What is known about a user."""
        return self._send(calls.history(user_id))

    def forget(self, user_id: str) -> Erased:
        """Delete everything about a user."""
        return self._send(calls.forget(user_id))

    def item(self, item_id: str) -> Item:
        """One item with its description."""
        return self._send(calls.item(item_id))

    def similar(self, item_id: str, k: int = 10) -> SimilarItems:
        """Items like one item."""
        return self._send(calls.similar(item_id, k))

    def search(self, title: str, limit: int = 10) -> ItemList:
        """Items by words of their title."""
        return self._send(calls.search(title, limit))

    def put_item(self, item_id: str, **fields: Unpack[ItemFields]) -> WrittenItem:
        """Make or replace an item."""
        return self._send(calls.put_item(item_id, fields))

    def patch_item(self, item_id: str, **fields: Unpack[ItemFields]) -> WrittenItem:
        """Change some fields of an item."""
        return self._send(calls.patch_item(item_id, fields))

    def delete_item(self, item_id: str) -> WrittenItem:
        """Delete an item."""
        return self._send(calls.delete_item(item_id))

    def load_items(
        self,
        lines: Iterable[ItemLine],
        *,
        on_bad_row: Literal["fail", "skip"] = "fail",
        deadline_s: float | None = None,
    ) -> BulkReport:
        """Many changes in one commit."""
        return self._send(calls.load_items(lines, on_bad_row), deadline_s)

    def info(self) -> Info:
        """What is being served."""
        return self._send(calls.info())

    def readiness(self) -> Readiness:
        """Whether the service is ready; raises ServiceError with the reasons if it is not."""
        return self._send(calls.readiness())

    def _send(self, call: Call[Answer], deadline_s: float | None = None) -> Answer:
        attempts = Attempts(deadline_s or self._deadline_s)
        while True:
            try:
                outcome: httpx.Response | httpx.TransportError = self._http.request(
                    **call.arguments(attempts.left_s)
                )
                if outcome.is_success:
                    return call.answer.model_validate_json(outcome.content)
            except httpx.TransportError as error:
                outcome = error
            time.sleep(attempts.pause_after(outcome))


class AsyncClient:
    """The same for asyncio; see `Client` for every method."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        deadline_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._deadline_s = deadline_s
        self._http = httpx.AsyncClient(base_url=url, headers=_key(api_key), transport=transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Release the connections."""
        await self._http.aclose()

    async def recommend(
        self, *, deadline_s: float | None = None, **options: Unpack[RecommendOptions]
    ) -> RecommendResponse:
        """Items for one user. Raises ServiceError, like every call."""
        return await self._send(calls.recommend(options), deadline_s)

    async def recommend_batch(
        self, requests: Iterable[RecommendOptions], *, deadline_s: float | None = None
    ) -> AsyncIterator[BatchLine]:
        """Items for up to 256 users, in the order of finishing; a started stream is not repeated."""
        call, attempts = calls.recommend_batch(requests), Attempts(deadline_s or self._deadline_s)
        while True:
            try:
                async with self._http.stream(**call.arguments(attempts.left_s)) as reply:
                    if reply.is_success:
                        lines = calls.BatchLines()
                        async for chunk in reply.aiter_bytes():
                            for line in lines.add(chunk):
                                yield line
                        return
                    await reply.aread()
                    outcome: httpx.Response | httpx.TransportError = reply
            except httpx.ConnectError as error:
                outcome = error
            await asyncio.sleep(attempts.pause_after(outcome))

    async def send_events(
        self, events: Iterable[EventFields], *, deadline_s: float | None = None
    ) -> BulkAnswer:
        """Record what users did."""
        return await self._send(calls.send_events(events), deadline_s)

    async def history(self, user_id: str) -> UserHistory:
        """What is known about a user."""
        return await self._send(calls.history(user_id))

    async def forget(self, user_id: str) -> Erased:
        """Delete everything about a user."""
        return await self._send(calls.forget(user_id))

    async def item(self, item_id: str) -> Item:
        """One item with its description."""
        return await self._send(calls.item(item_id))

    async def similar(self, item_id: str, k: int = 10) -> SimilarItems:
        """Items like one item."""
        return await self._send(calls.similar(item_id, k))

    async def search(self, title: str, limit: int = 10) -> ItemList:
        """Items by words of their title."""
        return await self._send(calls.search(title, limit))

    async def put_item(self, item_id: str, **fields: Unpack[ItemFields]) -> WrittenItem:
        """Make or replace an item."""
        return await self._send(calls.put_item(item_id, fields))

    async def patch_item(self, item_id: str, **fields: Unpack[ItemFields]) -> WrittenItem:
        """Change some fields of an item."""
        return await self._send(calls.patch_item(item_id, fields))

    async def delete_item(self, item_id: str) -> WrittenItem:
        """Delete an item."""
        return await self._send(calls.delete_item(item_id))

    async def load_items(
        self,
        lines: Iterable[ItemLine],
        *,
        on_bad_row: Literal["fail", "skip"] = "fail",
        deadline_s: float | None = None,
    ) -> BulkReport:
        """Many changes in one commit."""
        return await self._send(calls.load_items(lines, on_bad_row), deadline_s)

    async def info(self) -> Info:
        """What is being served."""
        return await self._send(calls.info())

    async def readiness(self) -> Readiness:
        """Whether the service is ready; raises ServiceError with the reasons if it is not."""
        return await self._send(calls.readiness())

    async def _send(self, call: Call[Answer], deadline_s: float | None = None) -> Answer:
        attempts = Attempts(deadline_s or self._deadline_s)
        while True:
            try:
                outcome: httpx.Response | httpx.TransportError = await self._http.request(
                    **call.arguments(attempts.left_s)
                )
                if outcome.is_success:
                    return call.answer.model_validate_json(outcome.content)
            except httpx.TransportError as error:
                outcome = error
            await asyncio.sleep(attempts.pause_after(outcome))


def _key(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
