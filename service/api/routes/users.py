"""What is known about a user: read it, delete it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from service.api.errors import documented
from service.api.event_models import NO_CONTROLS, Erased, EventOut, UserHistory
from service.api.services import ServicesDep, require_read, require_write
from service.errors import CatalogueError

router = APIRouter(tags=["users"])

UserPath = Annotated[str, Path(min_length=1, max_length=256, pattern=NO_CONTROLS)]


@router.get(
    "/users/{user_id:path}/history",
    summary="What a user did",
    response_model=UserHistory,
    dependencies=[Depends(require_read)],
    responses=documented(401, 403, 404, 422, 429, 500, 503),
)
async def get_history(
    services: ServicesDep, user_id: UserPath, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> UserHistory:
    """The newest events that are still kept. A user nobody has told of has none."""
    events = await services.events.history(user_id, limit)
    if events is None:
        raise CatalogueError("Redis is away, so histories cannot be read now; come back later")
    return UserHistory(user_id=user_id, events=[EventOut.of(event) for event in events])


@router.delete(
    "/users/{user_id:path}",
    summary="Forget a user",
    response_model=Erased,
    dependencies=[Depends(require_write)],
    responses=documented(401, 403, 404, 422, 429, 500, 503),
)
async def delete_user(services: ServicesDep, user_id: UserPath) -> Erased:
    """Deletes everything of the user, in Redis and in the buffers of all replicas. 200 means that it is
    done; 503 that it is not, and must be repeated."""
    return Erased(user_id=user_id, events=await services.events.erase(user_id))
