"""One answer, from a request's body to what is sent: by the active bundle, or by the B of an experiment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace

from service.access import Caller
from service.access.callers import require
from service.api.context import RequestContext
from service.api.models import RecommendRequest, RecommendResponse
from service.api.queries import beam_width_of, query_of, with_stored_history
from service.api.responses import response_of
from service.api.services import Services
from service.errors import GtirecError
from service.observability import metrics
from service.recommendation_id import FORCED
from service.recommender import Query, Recommendation
from service.rollout import Seat, Serving
from service.rollout.experiment import Variant

PATIENCE = 0.5  # part of the deadline that B may use up; the rest is for A

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Which variant a request should get.

    Attributes:
        variant: "a", the active bundle, or "b".
        is_forced: the caller asked for it.
        seat: where the running experiment puts the user; None if the answer counts in none.
    """

    variant: Variant
    is_forced: bool = False
    seat: Seat | None = None

    def tag(self, served: Variant) -> str:
        """What the name of the answer holds."""
        if self.is_forced:
            return FORCED
        return "" if self.seat is None else self.seat.tag(served)

    def label(self, served: Variant) -> str:
        """What metrics count the answer under."""
        return FORCED if self.is_forced else served


def choose(body: RecommendRequest, services: Services, caller: Caller) -> Choice:
    """The variant that the caller asks for, or the one of the user: by `user_id`, else by `session_id`, else
    by the history. Without any of them it is the active bundle's answer, and counts for nobody.

    Raises:
        Forbidden: this caller may not ask for one.
    """
    experiment = services.experiments.running
    if body.variant is not None:
        require(caller, "preview")
        return Choice(body.variant, is_forced=True)
    unit = _unit(body)
    if experiment is None or unit is None:
        return Choice("a")
    seat = experiment.seat(unit)
    return Choice(seat.variant, seat=seat)


async def respond(
    body: RecommendRequest, context: RequestContext, services: Services, caller: Caller
) -> RecommendResponse:
    """One answer from a request's body, counted in metrics and log fields."""
    started = time.perf_counter()
    choice = choose(body, services, caller)
    context.timings.variant = choice.label(choice.variant)
    challenger, reason = None, ""
    if choice.variant == "b":
        found = services.experiments.challenger
        challenger, reason = found.serving, found.reason
    # Held from the choice on: the experiment may end while the history is read.
    with contextlib.nullcontext() if challenger is None else challenger.held():
        query, has_history = await _query(body, context, services)
        answer, serving, variant = None, services.serving, "a"
        if challenger is not None:
            width = beam_width_of(body, services.settings, challenger.bundle)
            asked = replace(query, beam_width=width, tag=choice.tag("b"))
            answer, reason = await _try(challenger, asked, context, services)
        if answer is not None and challenger is not None:
            serving, variant = challenger, "b"
        else:
            if reason:
                metrics.VARIANT_FALLBACKS.labels(reason=reason).inc()
                context.fields["fallback"] = reason
            context.timings.variant = choice.label("a")
            query = replace(query, tag=choice.tag("a"))
            answer = await services.recommender.recommend(query, context.timings)
    if not has_history:
        answer = replace(answer, missing=(*answer.missing, "history"))
    _count(answer, serving, choice, variant, services)
    context.fields.update(_fields(answer))
    timings = {**context.timings.ms, "total": round(1000 * (time.perf_counter() - started), 3)}
    response = response_of(answer, serving.bundle, timings, body.fields)
    if choice.is_forced or services.experiments.running is not None:
        response.variant, response.assigned_variant = variant, choice.variant
    return response


async def _query(body: RecommendRequest, context: RequestContext, services: Services) -> tuple[Query, bool]:
    """What is asked, with the user's stored history where the request names a user and sends none; False
    beside it if that could not be read."""
    query, has_history = query_of(body, services), True
    if body.user_id is not None and "history" not in body.model_fields_set:
        with context.timings.stage("history"):
            events = await services.events.history(body.user_id)
        has_history = events is not None
        query = with_stored_history(query, events or [])
    context.fields.update(k=query.k, num_history=len(query.history), beam_width=query.beam_width)
    return query, has_history


async def _try(
    challenger: Serving, query: Query, context: RequestContext, services: Services
) -> tuple[Recommendation | None, str]:
    """B's answer; or None, and why there is none. Whatever is wrong with the request itself, A says it."""
    try:
        async with asyncio.timeout(PATIENCE * services.settings.request_deadline_s):
            answer = await challenger.recommender.recommend(query, context.timings)
    except TimeoutError:
        services.experiments.rest()
        return None, "late"
    except GtirecError as error:
        log.debug("variant b did not answer: %s", error)
        return None, "refused"
    except Exception:
        log.exception("a bug in the service, seen with variant b", extra={"request_id": context.request_id})
        services.experiments.rest()
        return None, "bug"
    return (None, "engine") if "engine" in answer.missing else (answer, "")


def _count(
    answer: Recommendation, serving: Serving, choice: Choice, variant: Variant, services: Services
) -> None:
    label = choice.label(variant)
    metrics.RECOMMENDATIONS.labels(bundle_id=serving.bundle_id, variant=label).inc()
    for source, num_items in answer.sources.items():
        metrics.RECOMMENDED.labels(source=source, variant=label).inc(num_items)
    for tier, num_items in answer.tiers.items():
        metrics.RECOMMENDED_TIERS.labels(tier=tier, variant=label).inc(num_items)
    metrics.SHORT_ANSWERS.labels(variant=label).inc(answer.is_short)
    for missing in answer.missing:
        metrics.DEGRADED_ANSWERS.labels(missing=missing, variant=label).inc()
    if choice.is_forced:
        return
    serving.coverage.note(record.item_id for record in answer.records)
    if choice.seat is not None:
        services.experiments.tally.answer(choice.seat, variant)


def _fields(answer: Recommendation) -> dict[str, object]:
    """For the log line."""
    return {
        "recommendation_id": answer.recommendation_id,
        "num_unknown": len(answer.unknown_items),
        "sources": answer.sources,
        "missing": answer.missing,
    }


def _unit(body: RecommendRequest) -> str | None:
    """What a user is known by in an experiment."""
    if body.user_id is not None:
        return f"user:{body.user_id}"
    if body.session_id is not None:
        return f"session:{body.session_id}"
    if body.history:
        return "history:" + "\n".join(event.item_id for event in body.history)
    return None
