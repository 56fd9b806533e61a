"""/admin/bundles: which bundles there are, and switching between them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, Field

from service.api.errors import documented
from service.api.experiment_models import ActivationStatus
from service.api.experiment_reports import status_of
from service.api.info_models import ReplicaInfo
from service.api.services import Services, ServicesDep, require_admin
from service.errors import NotFound

router = APIRouter(tags=["admin"], dependencies=[Depends(require_admin)])

WaitSeconds = Annotated[
    float, Query(ge=0, le=600, description="Seconds to wait for the end before answering 202.")
]


class BundleEntry(BaseModel):
    """A bundle on this machine."""

    bundle_id: str
    name: str
    directory: str = Field(description="Name of its directory.")
    num_items: int = Field(description="As exported; live changes come on top.")
    is_active: bool
    is_previous: bool = Field(description="What a rollback goes back to.")
    metrics: dict[str, Any]


class BundleList(BaseModel):
    """Bundles, replicas, and what is going on."""

    bundles: list[BundleEntry]
    activation: ActivationStatus
    replicas: dict[str, ReplicaInfo]


@router.get(
    "/admin/bundles",
    summary="List the bundles",
    response_model=BundleList,
    responses=documented(401, 403, 429, 500),
)
async def list_bundles(services: ServicesDep) -> BundleList:
    """Bundles in GTIREC_BUNDLES_DIR of this replica, and what every replica serves."""
    active, previous = services.current.serving.bundle_id, services.follower.previous_id
    return BundleList(
        bundles=[
            BundleEntry(
                bundle_id=shelved.bundle_id,
                name=shelved.manifest.name,
                directory=shelved.path.name,
                num_items=shelved.manifest.num_items,
                is_active=shelved.bundle_id == active,
                is_previous=shelved.bundle_id == previous,
                metrics=shelved.manifest.metrics,
            )
            for shelved in services.shelf.bundles()
        ],
        activation=status_of(services.activator.activation),
        replicas={
            name: ReplicaInfo.model_validate(says) for name, says in services.follower.replicas.items()
        },
    )


@router.post(
    "/admin/bundles/{bundle_id}/activate",
    summary="Serve another bundle",
    response_model=ActivationStatus,
    responses=documented(401, 403, 404, 409, 429, 500, 503)
    | {202: {"model": ActivationStatus, "description": "Not done yet; GET /admin/bundles says how it goes."}},
)
async def activate_bundle(
    services: ServicesDep,
    response: Response,
    bundle_id: Annotated[str, Path(max_length=64)],
    wait_s: WaitSeconds = 0.0,
) -> ActivationStatus:
    """Every replica opens the bundle beside the active one and tests it; changes to the catalogue are
    carried over; then all switch, and requests in flight finish on the old one. If anything fails before,
    the old one stays active everywhere."""
    return await _activate(services, response, bundle_id, wait_s)


@router.post(
    "/admin/bundles/rollback",
    summary="Go back to the bundle before",
    response_model=ActivationStatus,
    responses=documented(401, 403, 404, 409, 429, 500, 503)
    | {202: {"model": ActivationStatus, "description": "Not done yet; GET /admin/bundles says how it goes."}},
)
async def roll_back(services: ServicesDep, response: Response, wait_s: WaitSeconds = 0.0) -> ActivationStatus:
    """The same as activating the bundle that was active before; changes made since are kept."""
    if (previous := services.follower.previous_id) is None:
        raise NotFound("no bundle was active before this one")
    return await _activate(services, response, previous, wait_s)


async def _activate(
    services: Services, response: Response, bundle_id: str, wait_s: float
) -> ActivationStatus:
    services.activator.activate(bundle_id)
    await services.activator.finished(wait_s)
    status = status_of(services.activator.activation)
    response.status_code = {"done": 200, "failed": 503}.get(status.state, 202)
    return status
