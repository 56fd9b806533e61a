"""Who computes the parts of a job: one worker a process, whatever the job is."""

from __future__ import annotations

from typing import Protocol

from service.batch.embedder import Embedder
from service.batch.job import Job
from service.batch.worker import Worker
from service.bundle import Bundle
from service.engine.select import EngineOptions, choose_engine, engine_factory


class PartWorker(Protocol):
    """Computes part after part."""

    def answer(self, number: int) -> int:
        """Compute a part and put its file in place; returns its number of rows."""
        ...

    def close(self) -> None:
        """Give back what it holds. Idempotent."""
        ...


def start_worker(job: Job, bundle: Bundle, engine: str, options: EngineOptions) -> PartWorker:
    """The worker that a job needs.

    Args:
        job: whose parts.
        bundle: what answers.
        engine, options: see `service.engine.select`; vectors need none.
    """
    if job.settings.kind == "embed":
        return Embedder(job, bundle)
    return Worker(job, bundle, engine_factory(choose_engine(engine), bundle, options))
