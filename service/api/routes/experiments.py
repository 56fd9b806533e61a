"""/admin/experiments: a second bundle for a share of the users, and what comes of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from service.api.errors import documented
from service.api.experiment_models import (
    ActivationStatus,
    ExperimentIn,
    ExperimentList,
    ExperimentReport,
    ShareIn,
)
from service.api.experiment_reports import report_of, status_of
from service.api.routes.admin import WaitSeconds
from service.api.services import Services, ServicesDep, require_admin
from service.errors import NotFound
from service.rollout import Experiment

router = APIRouter(tags=["admin"], dependencies=[Depends(require_admin)])

ExperimentId = Annotated[str, Path(max_length=64)]
_LATER = {
    202: {"model": ActivationStatus, "description": "Not done yet; GET /admin/experiments says how it goes."}
}


@router.get(
    "/admin/experiments",
    summary="List the experiments with their numbers",
    response_model=ExperimentList,
    responses=documented(401, 403, 429, 500, 503),
)
async def list_experiments(services: ServicesDep) -> ExperimentList:
    """Per variant: answers, events that followed from them (those whose `recommendation_id` names one of its
    answers), events per answer, and B's gain over A, each with a 95 % interval."""
    found = await services.experiments.all()
    reports = {each.experiment_id: await _report(services, each) for each in found}
    return ExperimentList(
        running=next((one for one in reports.values() if one.outcome == "running"), None),
        activation=status_of(services.activator.activation),
        ended=[reports[each.experiment_id] for each in found if each.outcome != "running"],
    )


@router.post(
    "/admin/experiments",
    summary="Begin an experiment",
    status_code=201,
    response_model=ActivationStatus,
    responses=documented(401, 403, 404, 409, 422, 429, 500, 503) | _LATER,
)
async def start_experiment(
    body: ExperimentIn, services: ServicesDep, response: Response, wait_s: WaitSeconds = 0.0
) -> ActivationStatus:
    """Every replica opens bundle B beside the active one and tests it, changes to the catalogue are carried
    over, and then B answers its share of the users: always the same ones. While it runs, changes reach both
    bundles; users of B whose bundle cannot answer get A's answer."""
    services.experiments.start(body.name, body.bundle_id, body.share)
    return await _status(services, response, wait_s, done=201)


@router.patch(
    "/admin/experiments/{experiment_id}",
    summary="Give B another share of the users",
    response_model=ExperimentReport,
    responses=documented(401, 403, 404, 422, 429, 500, 503),
)
async def change_share(body: ShareIn, services: ServicesDep, experiment_id: ExperimentId) -> ExperimentReport:
    """Replicas follow within a second."""
    await services.experiments.change_share(experiment_id, body.share)
    return await _one(services, experiment_id)


@router.post(
    "/admin/experiments/{experiment_id}/stop",
    summary="End an experiment; everybody gets A",
    response_model=ExperimentReport,
    responses=documented(401, 403, 404, 429, 500, 503),
)
async def stop_experiment(services: ServicesDep, experiment_id: ExperimentId) -> ExperimentReport:
    """Replicas follow within a second. What B is answering at that moment, it answers to the end; events
    that follow from its answers later are still counted."""
    await services.experiments.stop(experiment_id)
    return await _one(services, experiment_id)


@router.post(
    "/admin/experiments/{experiment_id}/promote",
    summary="End an experiment; everybody gets B",
    response_model=ActivationStatus,
    responses=documented(401, 403, 404, 409, 429, 500, 503) | _LATER,
)
async def promote(
    services: ServicesDep, response: Response, experiment_id: ExperimentId, wait_s: WaitSeconds = 0.0
) -> ActivationStatus:
    """Activates B, which is open everywhere already; a rollback goes back to A."""
    services.experiments.promote(experiment_id)
    return await _status(services, response, wait_s, done=200)


async def _status(services: Services, response: Response, wait_s: float, done: int) -> ActivationStatus:
    status = status_of(await services.activator.finished(wait_s))
    response.status_code = {"done": done, "failed": 503}.get(status.state, 202)
    return status


async def _one(services: Services, experiment_id: str) -> ExperimentReport:
    for experiment in await services.experiments.all():
        if experiment.experiment_id == experiment_id:
            return await _report(services, experiment)
    raise NotFound(f"there is no experiment {experiment_id}")


async def _report(services: Services, experiment: Experiment) -> ExperimentReport:
    return report_of(experiment, await services.experiments.counts(experiment.experiment_id))
