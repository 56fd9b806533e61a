"""POST /recommend/batch: many queries in one call, answers streamed as they finish."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse

from service.access import Caller
from service.api.answering import respond
from service.api.context import Context, RequestContext
from service.api.errors import described, documented
from service.api.models import BatchLine, BatchRequest, ErrorBody, RecommendRequest
from service.api.services import CallerDep, Services, ServicesDep, require_read
from service.errors import DeadlineExceeded, GtirecError

AT_ONCE = 8  # requests of one batch in work; more would only push other callers' requests back

log = logging.getLogger(__name__)

router = APIRouter(tags=["recommend"], dependencies=[Depends(require_read)])


NDJSON = "application/x-ndjson"
_LINE = BatchLine.model_json_schema(ref_template="#/components/schemas/{model}")
_LINE.pop("$defs")  # the other routes bring them


@router.post(
    "/recommend/batch",
    summary="Recommend for many users at once",
    response_model=None,
    responses={
        200: {
            "description": "One JSON object a line, in the order of finishing; `index` says which request it "
            "answers. A request that fails has an `error` on its line and leaves the others alone.",
            "content": {NDJSON: {"schema": _LINE}},
        },
        **documented(401, 403, 413, 422, 429, 500),
    },
)
async def recommend_batch(
    body: BatchRequest, context: Context, services: ServicesDep, caller: CallerDep
) -> StreamingResponse:
    """Up to 256 queries, each as for `/recommend`. Lines come as soon as they are ready."""
    context.fields.update(num_requests=len(body.requests))
    return StreamingResponse(_lines(body.requests, context.request_id, services, caller), media_type=NDJSON)


async def _lines(
    queries: list[RecommendRequest], request_id: str, services: Services, caller: Caller
) -> AsyncIterator[bytes]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def run(index: int, query: RecommendRequest) -> BatchLine:
        async with gate:
            return await _line(index, query, RequestContext(f"{request_id}.{index}"), services, caller)

    tasks = [asyncio.create_task(run(index, query)) for index, query in enumerate(queries)]
    try:
        for finished in asyncio.as_completed(tasks):
            yield (await finished).model_dump_json(exclude_unset=True).encode() + b"\n"
    finally:  # the caller hung up, or everything is sent
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _line(
    index: int, query: RecommendRequest, context: RequestContext, services: Services, caller: Caller
) -> BatchLine:
    deadline_s = services.settings.request_deadline_s
    try:
        async with asyncio.timeout(deadline_s):
            return BatchLine(index=index, response=await respond(query, context, services, caller))
    except TimeoutError:
        error: Exception = DeadlineExceeded(f"the answer was not ready within {deadline_s:g} s")
    except Exception as failure:
        if not isinstance(failure, GtirecError):
            log.exception("a bug in the service", extra={"request_id": context.request_id})
        error = failure
    status, sentence, error_type = described(error)
    body = ErrorBody(error=sentence, error_type=error_type, request_id=context.request_id)
    return BatchLine(index=index, status=status, error=body)
