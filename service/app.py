"""Puts the service together: bundle, catalogue, engine, recommender, routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from pydantic import SecretStr

from service.access import Callers, KeyRing, Rates
from service.api import errors, openapi
from service.api.middleware import BodyLimitMiddleware, RequestMiddleware
from service.api.routes import (
    admin,
    batch,
    bulk,
    events,
    experiments,
    items,
    operations,
    pages,
    recommend,
    users,
)
from service.api.services import Services
from service.bundle import Bundle, load_bundle
from service.catalogue import Catalogue
from service.engine.admission import Admission
from service.engine.canary import Canary
from service.engine.protocol import Engine
from service.engine.select import EngineOptions, choose_engine, engine_factory
from service.engine.supervisor import EngineSupervisor, SupervisorLimits
from service.events import Attribution, EventLimits, EventRecorder
from service.recommender import Recommender
from service.rollout import Activator, Beside, BundleShelf, Current, Experiments, Follower, Serving, Tally
from service.settings import Settings

DESCRIPTION = (
    "A language model writes the IDs of the items that a user will probably want next. Send a history to "
    "`POST /recommend`; every answer is an item of the catalogue."
)

SECONDS_PER_DAY = 24 * 3600
MIB = 2**20
BEAM_ROWS_AT_ONCE = 1024  # larger groups gain nothing and make the next request wait longer


def create_app(
    settings: Settings | None = None,
    *,
    bundle: Bundle | None = None,
    make_engine: Callable[[], Engine] | None = None,
    engine_of: Callable[[Bundle], Callable[[], Engine]] | None = None,
    on_fatal: Callable[[str], None] = lambda reason: None,
) -> FastAPI:
    """The application, with everything checked that can be checked before the first request.

    Args:
        settings: from the environment if not given.
        bundle: opened from `settings.bundle` if not given.
        make_engine: makes an unstarted engine; chosen by `settings.engine` if not given.
        engine_of: the same for bundles that are activated later.
        on_fatal: called with a sentence when the engine is given up and the process should exit.

    Raises:
        BundleError: the bundle cannot be trusted.
        CatalogueError: no Redis is configured and none can be started.
        EngineError: the engine asked for cannot run here.
    """
    settings = settings or Settings()
    bundle = bundle or load_bundle(
        settings.bundle, verify=settings.verify_bundle, expected_id=settings.bundle_id
    )
    engine_of = engine_of or partial(_engine_of, settings)
    services = _Builder(settings, engine_of, on_fatal).services(bundle, make_engine or engine_of(bundle))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Both begin in the background: probes are answered from the first moment.
        services.current.serving.start()
        services.follower.start()
        services.events.start()
        services.callers.ring.start()
        try:
            yield
        finally:
            services.drain.begin()
            await services.activator.close()
            await services.follower.close()
            await services.beside.close()
            await services.current.serving.engine.close()
            await services.events.close()
            await services.callers.ring.close()
            await services.current.serving.close()

    app = FastAPI(
        title="gti-rec",
        version=version("gti-rec"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    errors.install(app)
    for module in (recommend, batch, events, users, bulk, items, operations, admin, experiments, pages):
        app.include_router(module.router)
    pages.mount_static(app)
    app.add_middleware(
        BodyLimitMiddleware, max_bytes=settings.max_body_bytes, max_bulk_bytes=settings.max_bulk_bytes
    )
    app.add_middleware(RequestMiddleware, drain=services.drain)  # added last = outermost
    openapi.install(app, services)
    return app


def _engine_of(settings: Settings, bundle: Bundle) -> Callable[[], Engine]:
    options = EngineOptions(
        dtype=settings.dtype,
        max_beam_rows=max(BEAM_ROWS_AT_ONCE, settings.max_beam_width),
        filter_cache_bytes=settings.filter_cache_mib * MIB,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        cpu_kv_cache_gib=settings.cpu_kv_cache_gib,
    )
    return engine_factory(choose_engine(settings.engine), bundle, options)


class _Builder:
    """Puts the parts together, for the first bundle and for those that are activated later."""

    def __init__(
        self,
        settings: Settings,
        engine_of: Callable[[Bundle], Callable[[], Engine]],
        on_fatal: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._engine_of = engine_of
        self._on_fatal = on_fatal
        self._current: Current | None = None

    def services(self, bundle: Bundle, make_engine: Callable[[], Engine]) -> Services:
        """Everything, with a first bundle."""
        settings = self._settings
        current = self._current = Current(self._serving(bundle, make_engine))
        shelf = BundleShelf(settings.bundles_dir, bundle, verify=settings.verify_bundle)
        beside = Beside(shelf, lambda opened: self._serving(opened, self._engine_of(opened)))
        tally = Tally()
        follower = Follower(current, beside, tally)
        activator = Activator(current, follower, beside, shelf, timeout_s=settings.engine_start_timeout_s)
        experiments = Experiments(current, follower, beside, activator, tally)
        events = EventRecorder(
            current,
            settings.data_dir / "events",
            EventLimits(
                max_events=settings.event_history,
                retention_s=SECONDS_PER_DAY * settings.event_retention_days,
                buffer_bytes=settings.event_buffer_bytes,
            ),
            attribution=Attribution(follower.served_bundles, tally.event),
        )
        callers = Callers(
            KeyRing(lambda: current.client),
            api_key=_secret(settings.api_key),
            admin_key=_secret(settings.admin_key),
            is_key_needed=settings.require_key,
        )
        rates = Rates(settings.rate_limit_per_s)
        return Services(
            settings, current, beside, follower, activator, experiments, shelf, events, callers, rates
        )

    def _serving(self, bundle: Bundle, make_engine: Callable[[], Engine]) -> Serving:
        settings = self._settings
        catalogue = Catalogue(
            bundle,
            redis_url=_secret(settings.redis_url),
            data_dir=settings.data_dir,
            timeout_s=settings.redis_timeout_s,
            filter_cache_bytes=settings.filter_cache_mib * MIB,
        )
        limits = SupervisorLimits(
            start_timeout_s=settings.engine_start_timeout_s,
            give_up_s=settings.engine_give_up_s,
            canary_interval_s=settings.canary_interval_s,
            canary_timeout_s=settings.canary_timeout_s,
        )

        def give_up(reason: str) -> None:
            serving.failure = reason
            if self._current is not None and self._current.serving is serving:
                self._on_fatal(reason)  # one that only stands by is no reason to exit

        engine = EngineSupervisor(make_engine, Canary(bundle), limits, give_up)
        # A bound for each bundle: one whose engine hangs must not use up the room of the other.
        admission = Admission(settings.max_inflight_beam_rows, queue_s=settings.queue_timeout_s)
        recommender = Recommender(bundle, catalogue, engine, admission)
        serving = Serving(bundle, catalogue, engine, recommender)
        return serving


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()
