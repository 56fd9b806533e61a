"""POST /recommend."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from service.api.answering import respond
from service.api.context import Context
from service.api.deadline import ClientGone, answer_in_time
from service.api.errors import documented
from service.api.middleware import CLIENT_GONE
from service.api.models import RecommendRequest, RecommendResponse
from service.api.services import CallerDep, ServicesDep, require_key

router = APIRouter(tags=["recommend"], dependencies=[Depends(require_key)])


@router.post(
    "/recommend",
    summary="Recommend items after a history",
    response_model=RecommendResponse,
    response_model_exclude_unset=True,  # what `fields` left out
    responses=documented(401, 403, 413, 422, 429, 500, 503, 504),
)
async def recommend(
    body: RecommendRequest, request: Request, context: Context, services: ServicesDep, caller: CallerDep
) -> RecommendResponse | Response:
    """Items that this user will probably want next, written by the language model as semantic IDs.

    Only IDs that exist can be written. You get exactly k items, or all that are allowed if there are
    fewer; each says where it comes from.
    """
    try:
        work = respond(body, context, services, caller)
        return await answer_in_time(request, work, deadline_s=services.settings.request_deadline_s)
    except ClientGone:
        context.fields["status"] = CLIENT_GONE
        return Response(status_code=503)
