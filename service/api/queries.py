"""From a request's body to what the recommender is asked."""

from __future__ import annotations

from dataclasses import replace

from service.api.models import RecommendRequest
from service.api.services import Services
from service.bundle import Bundle
from service.errors import HistoryTooLong, RequestError
from service.events import HISTORY_KINDS, Event
from service.picks import Rotation
from service.recommender import Query
from service.settings import Settings


def with_stored_history(query: Query, events: list[Event]) -> Query:
    """The same question after what /events told about the user."""
    hidden = tuple(dict.fromkeys(event.item_id for event in events if event.kind == "hide"))
    history = tuple(event.item_id for event in events if event.kind in HISTORY_KINDS)
    return replace(query, history=history, exclude_items=query.exclude_items + hidden)


def query_of(body: RecommendRequest, services: Services) -> Query:
    """A request as the recommender takes it; checks what depends on the settings.

    Raises:
        HistoryTooLong, RequestError: with a sentence that names the limit.
    """
    settings = services.settings
    if len(body.history) > settings.max_history:
        raise HistoryTooLong(
            f"'history' has {len(body.history)} elements, at most {settings.max_history} are accepted; the "
            f"model reads the newest {services.bundle.manifest.prompt.history_limit}"
        )
    if len(body.exclude_items) > settings.max_exclude:
        raise RequestError(
            f"'exclude_items' has {len(body.exclude_items)} elements, at most {settings.max_exclude} "
            "are accepted"
        )
    if body.k > settings.max_k:
        raise RequestError(f"'k' must be at most {settings.max_k}, got {body.k}")
    if body.beam_width is not None and body.beam_width > settings.max_beam_width:
        raise RequestError(f"'beam_width' must be at most {settings.max_beam_width}, got {body.beam_width}")
    return Query(
        history=_in_order(body),
        k=body.k,
        beam_width=beam_width_of(body, settings, services.bundle),
        widen_to=settings.max_beam_width,
        exclude_items=tuple(body.exclude_items),
        exclude_seen=body.exclude_seen,
        filter=body.filter,
        explain=body.explain,
        context=body.context or "",
        rotation=Rotation(body.rotation.seed, body.rotation.strength) if body.rotation else None,
    )


def beam_width_of(body: RecommendRequest, settings: Settings, bundle: Bundle) -> int:
    """Beams to keep with a bundle, which may say how many its figures were measured with."""
    default_width = settings.beam_width(bundle.manifest.beam_width)
    return body.beam_width or min(max(body.k, default_width), settings.max_beam_width)


def _in_order(body: RecommendRequest) -> tuple[str, ...]:
    """Item ids, oldest first."""
    dated = [(event.timestamp, event.item_id) for event in body.history if event.timestamp is not None]
    if not dated:
        return tuple(event.item_id for event in body.history)
    if len(dated) < len(body.history):
        raise RequestError("either every element of 'history' has a timestamp, or none has")
    return tuple(item_id for _, item_id in sorted(dated, key=lambda pair: pair[0]))
