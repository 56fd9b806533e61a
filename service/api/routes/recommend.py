"""POST /recommend."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from service import explanations
from service.api.context import Context, RequestContext
from service.api.deadline import ClientGone, answer_in_time
from service.api.errors import documented
from service.api.explanation_models import Effect, Explanation, SharedCodes
from service.api.middleware import CLIENT_GONE
from service.api.models import RecommendedItem, RecommendRequest, RecommendResponse
from service.api.services import Services, ServicesDep, require_key
from service.errors import HistoryTooLong, RequestError
from service.events import HISTORY_KINDS, Event
from service.observability import metrics
from service.recommender import Query, Recommendation

router = APIRouter(tags=["recommend"], dependencies=[Depends(require_key)])


@router.post(
    "/recommend",
    summary="Recommend items after a history",
    response_model=RecommendResponse,
    responses=documented(401, 403, 413, 422, 429, 500, 503, 504),
)
async def recommend(
    body: RecommendRequest, request: Request, context: Context, services: ServicesDep
) -> RecommendResponse | Response:
    """Items that this user will probably want next, written by the language model as semantic IDs.

    Only IDs that exist can be written. You get exactly k items, or all that are allowed if there are
    fewer; each says where it comes from.
    """
    try:
        work = respond(body, context, services)
        return await answer_in_time(request, work, deadline_s=services.settings.request_deadline_s)
    except ClientGone:
        context.fields["status"] = CLIENT_GONE
        return Response(status_code=503)


async def respond(body: RecommendRequest, context: RequestContext, services: Services) -> RecommendResponse:
    """One answer from a request's body, counted in metrics and log fields."""
    started = time.perf_counter()
    answer = await _answer(body, _query(body, services), context, services)
    _count(answer, context.fields)
    metrics.RECOMMENDATIONS.labels(bundle_id=services.bundle.bundle_id).inc()
    total_ms = round(1000 * (time.perf_counter() - started), 3)
    return _response(answer, services, {**context.timings.ms, "total": total_ms})


async def _answer(
    body: RecommendRequest, query: Query, context: RequestContext, services: Services
) -> Recommendation:
    """The answer, after the user's history where the request names a user and sends none."""
    has_history = True
    if body.user_id is not None and "history" not in body.model_fields_set:
        with context.timings.stage("history"):
            events = await services.events.history(body.user_id)
        has_history = events is not None
        query = _with_stored_history(query, events or [])
    context.fields.update(k=query.k, num_history=len(query.history), beam_width=query.beam_width)
    answer = await services.recommender.recommend(query, context.timings)
    return answer if has_history else replace(answer, missing=(*answer.missing, "history"))


def _with_stored_history(query: Query, events: list[Event]) -> Query:
    hidden = tuple(dict.fromkeys(event.item_id for event in events if event.kind == "hide"))
    history = tuple(event.item_id for event in events if event.kind in HISTORY_KINDS)
    return replace(query, history=history, exclude_items=query.exclude_items + hidden)


def _query(body: RecommendRequest, services: Services) -> Query:
    """Check what depends on the settings.

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
    default_width = settings.beam_width(services.bundle.manifest.beam_width)
    return Query(
        history=_in_order(body),
        k=body.k,
        beam_width=body.beam_width or min(max(body.k, default_width), settings.max_beam_width),
        widen_to=settings.max_beam_width,
        exclude_items=tuple(body.exclude_items),
        exclude_seen=body.exclude_seen,
        filter=body.filter,
        explain=body.explain,
        context=body.context or "",
    )


def _in_order(body: RecommendRequest) -> tuple[str, ...]:
    """Item ids, oldest first."""
    dated = [(event.timestamp, event.item_id) for event in body.history if event.timestamp is not None]
    if not dated:
        return tuple(event.item_id for event in body.history)
    if len(dated) < len(body.history):
        raise RequestError("either every element of 'history' has a timestamp, or none has")
    return tuple(item_id for _, item_id in sorted(dated, key=lambda pair: pair[0]))


def _count(answer: Recommendation, fields: dict[str, object]) -> None:
    sources: dict[str, int] = {}
    for pick in answer.picks:
        sources[pick.source] = sources.get(pick.source, 0) + 1
    for source, num_items in sources.items():
        metrics.RECOMMENDED.labels(source=source).inc(num_items)
    metrics.SHORT_ANSWERS.inc(answer.is_short)
    for missing in answer.missing:
        metrics.DEGRADED_ANSWERS.labels(missing=missing).inc()
    fields.update(
        recommendation_id=answer.recommendation_id,
        num_unknown=len(answer.unknown_items),
        sources=sources,
        missing=answer.missing,
    )


def _response(answer: Recommendation, services: Services, timings: dict[str, float]) -> RecommendResponse:
    manifest = services.bundle.manifest
    items = [
        RecommendedItem(
            item_id=record.item_id,
            rank=place + 1,
            logprob=pick.logprob,
            probability=None if pick.logprob is None else math.exp(pick.logprob),
            semantic_id=manifest.spell(np.array(record.codes)),
            title=record.title,
            metadata=record.metadata,
            source=pick.source,
            explanation=None if answer.explanations is None else _explanation(answer.explanations[place]),
        )
        for place, (pick, record) in enumerate(zip(answer.picks, answer.records, strict=True))
    ]
    return RecommendResponse(
        recommendation_id=answer.recommendation_id,
        items=items,
        unknown_items=answer.unknown_items,
        short=answer.is_short,
        bundle_id=services.bundle.bundle_id,
        catalogue_version=answer.catalogue_version,
        degraded=answer.is_degraded,
        timings=timings,
    )


def _explanation(found: explanations.Explanation) -> Explanation:
    return Explanation(
        code_words=[list(words) for words in found.words],
        shared=[SharedCodes(item_id=one.item_id, levels=one.num_levels) for one in found.shared],
        effects=[Effect(item_id=one.item_id, logprob_change=one.logprob_change) for one in found.effects],
    )
