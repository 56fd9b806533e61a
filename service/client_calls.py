"""What the clients send, how often they try, and how a refusal is told. Used by service/client.py."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NotRequired, TypedDict, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from service.api.event_models import BulkAnswer, Erased, UserHistory
from service.api.info_models import Info, Readiness
from service.api.item_models import BulkReport, SimilarItems, WrittenItem
from service.api.models import BatchLine, HistoryEvent, Item, ItemList, RecommendResponse
from service.errors import GtirecError

Answer = TypeVar("Answer", bound=BaseModel)

RETRIED = (429, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
JSON = {"Content-Type": "application/json"}
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
    session_id: str
    variant: Literal["a", "b"]
    rotation: Mapping[str, Any]
    explain: bool


class EventFields(TypedDict):
    """Fields of an event; see `POST /events`."""

    user_id: str
    item_id: str
    type: str
    event_id: NotRequired[str]
    timestamp: NotRequired[str | float]
    recommendation_id: NotRequired[str]


class ItemFields(TypedDict, total=False):
    """Fields of an item; see `PUT /items/{item_id}`."""

    title: str
    description: str
    metadata: Mapping[str, Any]
    popularity: int
    available: bool


class ItemLine(ItemFields):
    """A line of `POST /items/bulk`: an item, or what to do with it."""

    item_id: str
    op: NotRequired[Literal["put", "patch", "delete"]]


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
class Call(Generic[Answer]):
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


class Attempts:
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


def _lines(values: Iterable[Mapping[str, Any]]) -> bytes:
    return b"\n".join(_json(value) for value in values)


class BatchLines:
    """Takes a batch's answer apart at newlines alone; httpx's own lines also end at U+2028, in a title."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, chunk: bytes) -> list[BatchLine]:
        """The lines that are complete with these bytes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [BatchLine.model_validate_json(line) for line in lines]


def _at(kind: str, name: str) -> str:
    return f"/{kind}/{quote(name, safe='')}"


def recommend(options: Mapping[str, Any]) -> Call[RecommendResponse]:
    return Call("POST", "/recommend", RecommendResponse, _json(options), JSON)


def recommend_batch(requests: Iterable[Mapping[str, Any]]) -> Call[BatchLine]:
    return Call("POST", "/recommend/batch", BatchLine, _json({"requests": list(requests)}), JSON)


def send_events(events: Iterable[Mapping[str, Any]]) -> Call[BulkAnswer]:
    return Call("POST", "/events/bulk", BulkAnswer, _lines(events), NDJSON)


def history(user_id: str) -> Call[UserHistory]:
    return Call("GET", _at("users", user_id) + "/history", UserHistory)


def forget(user_id: str) -> Call[Erased]:
    return Call("DELETE", _at("users", user_id), Erased)


def item(item_id: str) -> Call[Item]:
    return Call("GET", _at("items", item_id), Item)


def similar(item_id: str, k: int) -> Call[SimilarItems]:
    return Call("GET", _at("items", item_id) + "/similar", SimilarItems, params={"k": str(k)})


def search(title: str, limit: int) -> Call[ItemList]:
    return Call("GET", "/items", ItemList, params={"query": title, "limit": str(limit)})


def put_item(item_id: str, fields: Mapping[str, Any]) -> Call[WrittenItem]:
    return Call("PUT", _at("items", item_id), WrittenItem, _json(fields), JSON)


def patch_item(item_id: str, fields: Mapping[str, Any]) -> Call[WrittenItem]:
    return Call("PATCH", _at("items", item_id), WrittenItem, _json(fields), JSON)


def delete_item(item_id: str) -> Call[WrittenItem]:
    return Call("DELETE", _at("items", item_id), WrittenItem)


def load_items(lines: Iterable[Mapping[str, Any]], on_bad_row: str) -> Call[BulkReport]:
    return Call("POST", "/items/bulk", BulkReport, _lines(lines), NDJSON, {"on_bad_row": on_bad_row})


def info() -> Call[Info]:
    return Call("GET", "/info", Info)


def readiness() -> Call[Readiness]:
    return Call("GET", "/readyz", Readiness)
