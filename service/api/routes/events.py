"""POST /events and POST /events/bulk."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError

from service.api.context import Context
from service.api.errors import documented, sentence_of
from service.api.event_models import BulkAnswer, EventAnswer, EventIn, LineProblem
from service.api.lines import numbered_lines
from service.api.services import ServicesDep, require_write
from service.errors import EventsNotStored, RequestError
from service.events import Event, Recorded

BATCH = 500  # events recorded in one round trip
MAX_PROBLEMS = 20  # rejected lines described in an answer

router = APIRouter(tags=["events"], dependencies=[Depends(require_write)])


@router.post(
    "/events",
    summary="Say what a user did",
    response_model=EventAnswer,
    responses=documented(401, 403, 413, 422, 429, 500, 503),
)
async def post_event(body: EventIn, services: ServicesDep) -> EventAnswer:
    """Answered once the event lies on a disk. It is part of the user's history from then on: ask
    `POST /recommend` with the user_id alone."""
    event = body.to_event()
    recorded = await services.events.record([event])
    return EventAnswer(
        event_id=event.event_id,
        duplicate=recorded.num_duplicates > 0,
        expired=recorded.num_expired > 0,
        buffered=recorded.is_buffered,
    )


@router.post(
    "/events/bulk",
    summary="Say what many users did, one JSON object a line",
    response_model=BulkAnswer,
    responses=documented(401, 403, 413, 422, 429, 500, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/x-ndjson": {
                    "schema": {"type": "string"},
                    "example": '{"user_id": "ann", "item_id": "item-17", "type": "view", "event_id": "1"}\n',
                }
            },
        }
    },
)
async def post_events(request: Request, context: Context, services: ServicesDep) -> BulkAnswer:
    """Lines are as the body of `POST /events`. Good lines are recorded even if others are rejected;
    lines with an event_id can be sent again without harm."""
    tally = _Tally()
    batch: list[Event] = []
    try:
        async for line, text in _lines(request):
            try:
                batch.append(EventIn.model_validate_json(text).to_event())
            except ValidationError as error:
                tally.reject(line, sentence_of(error.errors()))
            if len(batch) >= BATCH:
                tally.add(await services.events.record(batch))
                batch = []
        if batch:
            tally.add(await services.events.record(batch))
    except EventsNotStored as error:
        raise EventsNotStored(f"{error}; {tally.num_done} lines before were kept") from error
    if not tally.num_done:
        raise RequestError(
            f"no line could be used: line {tally.problems[0].line}: {tally.problems[0].error}"
            if tally.problems
            else "the body holds no line; send one JSON object per line"
        )
    answer = tally.answer()
    context.fields.update(num_events=answer.recorded, num_rejected=answer.rejected)
    return answer


def _lines(request: Request) -> AsyncIterator[tuple[int, bytes]]:
    return numbered_lines(request.stream())


class _Tally:
    """Adds up what became of the lines."""

    def __init__(self) -> None:
        self.problems: list[LineProblem] = []
        self._num_rejected = 0
        self._parts: list[Recorded] = []

    @property
    def num_done(self) -> int:
        """Lines that need not be sent again."""
        return sum(part.num_recorded + part.num_duplicates + part.num_expired for part in self._parts)

    def add(self, recorded: Recorded) -> None:
        self._parts.append(recorded)

    def reject(self, line: int, sentence: str) -> None:
        self._num_rejected += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(LineProblem(line=line, error=sentence))

    def answer(self) -> BulkAnswer:
        return BulkAnswer(
            recorded=sum(part.num_recorded for part in self._parts),
            duplicates=sum(part.num_duplicates for part in self._parts),
            expired=sum(part.num_expired for part in self._parts),
            rejected=self._num_rejected,
            problems=self.problems,
            buffered=any(part.is_buffered for part in self._parts),
        )
