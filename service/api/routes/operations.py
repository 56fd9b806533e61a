"""For whoever runs the service: probes, facts and metrics. None but /info needs a key."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import prometheus_client
from fastapi import APIRouter, Depends, Response

from service.api.errors import documented
from service.api.experiment_models import ExperimentReport
from service.api.experiment_reports import report_of
from service.api.info_models import Info, Limits, Readiness, ReplicaInfo
from service.api.services import Services, ServicesDep, require_key
from service.decoding.filter_expression import attribute_kinds
from service.errors import CatalogueError

router = APIRouter(tags=["operations"])


@router.get("/livez", summary="Is the process alive?")
async def livez() -> dict[str, bool]:
    """Always 200 while the event loop turns. A dead engine is no reason to be restarted from outside:
    the process rebuilds it, and exits by itself if that keeps failing."""
    return {"alive": True}


@router.get(
    "/readyz",
    summary="Should requests be sent here?",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not now; the reasons say why."}},
)
async def readyz(services: ServicesDep, response: Response) -> Readiness:
    """200 once a real constrained request was answered and verified; 503 with reasons before, while the
    engine is rebuilt, and while the service shuts down."""
    reasons = services.not_ready_reasons()
    response.status_code = 503 if reasons else 200
    return Readiness(
        ready=not reasons,
        reasons=reasons,
        engine=services.engine.detail,
        catalogue=f"{services.catalogue.status.state}: {services.catalogue.status.detail}",
    )


@router.get(
    "/info",
    summary="What is being served?",
    response_model=Info,
    dependencies=[Depends(require_key)],
    responses=documented(401, 403, 500),
)
async def info(services: ServicesDep) -> Info:
    """Model, catalogue, engine and limits."""
    manifest, settings = services.bundle.manifest, services.settings
    snapshot = services.catalogue.snapshot
    return Info(
        name="gti-rec",
        version=_own_version(),
        bundle_id=services.bundle.bundle_id,
        bundle_name=manifest.name,
        catalogue_version=services.catalogue.version,
        decode_version=snapshot.version,
        trie_version=snapshot.trie_version,
        replicas={
            name: ReplicaInfo.model_validate(says) for name, says in services.follower.replicas.items()
        },
        num_items=snapshot.num_items - len(snapshot.hidden_rows),
        codebook_sizes=list(manifest.codebook_sizes),
        architecture=manifest.architecture,
        engine=services.engine.name,
        engine_rebuilds=services.engine.num_rebuilds,
        catalogue=services.catalogue.status.state,
        experiment=await _experiment(services),
        limits=Limits(
            max_k=settings.max_k,
            default_beam_width=settings.beam_width(manifest.beam_width),
            max_beam_width=settings.max_beam_width,
            max_history=settings.max_history,
            history_limit=manifest.prompt.history_limit,
            context_trained=manifest.context_trained,
            max_context_tokens=manifest.prompt.context.max_tokens if manifest.prompt.context else 0,
            max_exclude=settings.max_exclude,
        ),
        filter_attributes=attribute_kinds(services.catalogue.snapshot.space.attributes.schema),
        metrics=manifest.metrics,
        provenance=manifest.provenance,
    )


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics() -> Response:
    """Ours start with `gtirec_`; vLLM's own with `vllm:`."""
    return Response(prometheus_client.generate_latest(), media_type=prometheus_client.CONTENT_TYPE_LATEST)


async def _experiment(services: Services) -> ExperimentReport | None:
    experiment = services.experiments.running
    if experiment is None:
        return None
    try:
        return report_of(experiment, await services.experiments.counts(experiment.experiment_id))
    except CatalogueError:  # Redis is away: what is served is known, the numbers are not
        return report_of(experiment, None)


def _own_version() -> str:
    try:
        return version("gti-rec")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
