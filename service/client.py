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
import json
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NotRequired, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from service.api.event_models import BulkAnswer, Erased, UserHistory
from service.api.models import BatchLine, HistoryEvent, Info, Item, ItemList, Readiness, RecommendResponse
from service.errors import GtirecError

Answer = TypeVar("Answer", bound=BaseModel)

RETRIED = (429, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
NDJSON = {"Content-Type": "application/x-ndjson"}


class RecommendOptions(TypedDict, total=False):
    """Fields of `POST /recommend`; see /docs for their meaning."""

    user_id: str
    history: Sequence[str | HistoryEvent | Mapping[str, Any]]
    k: int
    beam_width: int
    filter: Mapping[str, Any]
    exclude_items: Sequence[str]
    exclude_seen: bool
    context: str
    fields: Sequence[str]
    explain: bool


class EventFields(TypedDict):
    """Fields of an event; see `POST /events`."""

    user_id: str
    item_id: str
    type: str
    event_id: NotRequired[str]
    timestamp: NotRequired[str | float]
    recommendation_id: NotRequired[str]


class ServiceError(GtirecError):
    """The service refused a call, or could not be reached before the deadline.

    Attributes:
        status: HTTP status; 0 if there was no answer.
        error_type: the service's word for it, e.g. "validation_error".
        request_id: what to look for in the service's log; "" if there was no answer.
    """

    def __init__(self, sentence: str, status: int = 0, error_type: str = "", request_id: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.error_type = error_type
        self.request_id = request_id


@dataclass(frozen=True)
class _Call(Generic[Answer]):
    """One request, as both clients send it."""

    method: str
    path: str
    answer: type[Answer]
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, timeout_s: float) -> dict[str, Any]:
        return {
            "method": self.method,
            "url": self.path,
            "content": self.content,
            "headers": dict(self.headers),
            "params": dict(self.params),
            "timeout": timeout_s,
        }


class _Attempts:
    """The clock of one call: how long the next attempt may take, and how long to wait before it."""

    def __init__(self, deadline_s: float) -> None:
        self._give_up_at = time.monotonic() + deadline_s
        self._pause_s = FIRST_PAUSE_S

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, at least a little."""
        return max(0.001, self._give_up_at - time.monotonic())

    def pause_after(self, outcome: httpx.Response | httpx.TransportError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            ServiceError: another attempt makes no sense or comes too late.
        """
        wait_s = random.uniform(0, self._pause_s)  # noqa: S311 - spreads retries, guards nothing
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if isinstance(outcome, httpx.Response):
            wait_s = max(wait_s, _retry_after_s(outcome))
            if outcome.status_code not in RETRIED or wait_s >= self.left_s:
                raise _refusal(outcome)
        elif wait_s >= self.left_s:
            raise ServiceError(
                f"the service did not answer in time ({type(outcome).__name__}: {outcome})"
            ) from outcome
        return wait_s


def _retry_after_s(response: httpx.Response) -> float:
    given = response.headers.get("Retry-After", "")
    return float(given) if given.isdigit() else 0.0


def _refusal(response: httpx.Response) -> ServiceError:
    try:
        body = response.json()
        return ServiceError(body["error"], response.status_code, body["error_type"], body["request_id"])
    except (ValueError, KeyError, TypeError):  # a proxy's page
        return ServiceError(f"HTTP status {response.status_code}", response.status_code)


# --- the calls --------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
    return json.dumps(value, default=_plain).encode()


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_none=True) if isinstance(value, BaseModel) else str(value)


def _post(path: str, body: Any, answer: type[Answer]) -> _Call[Answer]:
    return _Call("POST", path, answer, _json(body), {"Content-Type": "application/json"})


def _recommend(options: Mapping[str, Any]) -> _Call[RecommendResponse]:
    return _post("/recommend", options, RecommendResponse)


def _batch(requests: Iterable[Mapping[str, Any]]) -> _Call[BatchLine]:
    return _post("/recommend/batch", {"requests": list(requests)}, BatchLine)


def _events(events: Iterable[Mapping[str, Any]]) -> _Call[BulkAnswer]:
    lines = b"\n".join(_json(event) for event in events)
    return _Call("POST", "/events/bulk", BulkAnswer, lines, NDJSON)


def _at(kind: str, name: str) -> str:
    return f"/{kind}/{quote(name, safe='')}"


def _search(title: str, limit: int) -> _Call[ItemList]:
    return _Call("GET", "/items", ItemList, params={"query": title, "limit": str(limit)})


# --- the clients ------------------------------------------------------------------------------------


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
        return self._send(_recommend(options), deadline_s)

    def recommend_batch(
        self, requests: Iterable[RecommendOptions], *, deadline_s: float | None = None
    ) -> Iterator[BatchLine]:
        """Items for up to 256 users, in the order of finishing; a started stream is not repeated."""
        call, attempts = _batch(requests), _Attempts(deadline_s or self._deadline_s)
        while True:
            try:
                with self._http.stream(**call.arguments(attempts.left_s)) as reply:
                    if reply.is_success:
                        yield from (BatchLine.model_validate_json(line) for line in reply.iter_lines())
                        return
                    reply.read()
                    outcome: httpx.Response | httpx.TransportError = reply
            except httpx.ConnectError as error:
                outcome = error
            time.sleep(attempts.pause_after(outcome))

    def send_events(self, events: Iterable[EventFields], *, deadline_s: float | None = None) -> BulkAnswer:
        """Record what users did."""
        return self._send(_events(events), deadline_s)

    def history(self, user_id: str) -> UserHistory:
        """What is known about a user."""
        return self._send(_Call("GET", _at("users", user_id) + "/history", UserHistory))

    def forget(self, user_id: str) -> Erased:
        """Delete everything about a user."""
        return self._send(_Call("DELETE", _at("users", user_id), Erased))

    def item(self, item_id: str) -> Item:
        """One item with its description."""
        return self._send(_Call("GET", _at("items", item_id), Item))

    def search(self, title: str, limit: int = 10) -> ItemList:
        """Items by words of their title."""
        return self._send(_search(title, limit))

    def info(self) -> Info:
        """What is being served."""
        return self._send(_Call("GET", "/info", Info))

    def readiness(self) -> Readiness:
        """Whether the service is ready; raises ServiceError with the reasons if it is not."""
        return self._send(_Call("GET", "/readyz", Readiness))

    def _send(self, call: _Call[Answer], deadline_s: float | None = None) -> Answer:
        attempts = _Attempts(deadline_s or self._deadline_s)
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
        return await self._send(_recommend(options), deadline_s)

    async def recommend_batch(
        self, requests: Iterable[RecommendOptions], *, deadline_s: float | None = None
    ) -> AsyncIterator[BatchLine]:
        """Items for up to 256 users, in the order of finishing; a started stream is not repeated."""
        call, attempts = _batch(requests), _Attempts(deadline_s or self._deadline_s)
        while True:
            try:
                async with self._http.stream(**call.arguments(attempts.left_s)) as reply:
                    if reply.is_success:
                        async for line in reply.aiter_lines():
                            yield BatchLine.model_validate_json(line)
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
        return await self._send(_events(events), deadline_s)

    async def history(self, user_id: str) -> UserHistory:
        """What is known about a user."""
        return await self._send(_Call("GET", _at("users", user_id) + "/history", UserHistory))

    async def forget(self, user_id: str) -> Erased:
        """Delete everything about a user."""
        return await self._send(_Call("DELETE", _at("users", user_id), Erased))

    async def item(self, item_id: str) -> Item:
        """One item with its description."""
        return await self._send(_Call("GET", _at("items", item_id), Item))

    async def search(self, title: str, limit: int = 10) -> ItemList:
        """Items by words of their title."""
        return await self._send(_search(title, limit))

    async def info(self) -> Info:
        """What is being served."""
        return await self._send(_Call("GET", "/info", Info))

    async def readiness(self) -> Readiness:
        """Whether the service is ready; raises ServiceError with the reasons if it is not."""
        return await self._send(_Call("GET", "/readyz", Readiness))

    async def _send(self, call: _Call[Answer], deadline_s: float | None = None) -> Answer:
        attempts = _Attempts(deadline_s or self._deadline_s)
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
