"""One engine that answers parts of a job, with many requests in work at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from service.batch.job import Job, JobSettings
from service.bundle import Bundle
from service.catalogue import Catalogue
from service.engine.admission import Admission
from service.engine.protocol import Engine
from service.errors import BatchError
from service.observability.timings import Timings
from service.recommender import Query, Recommendation, Recommender

# Enough to fill the engine's groups of beams; more only wait.
BEAM_ROWS_IN_WORK = 4096
# No server: the catalogue answers from the bundle.
NO_REDIS = "unix:///nonexistent"
ANSWER_SCHEMA = {
    "user_id": pl.String,
    "item_ids": pl.List(pl.String),
    "logprobs": pl.List(pl.Float32),
    "sources": pl.List(pl.String),
    "unknown_items": pl.List(pl.String),
}


class Worker:
    """Opens the bundle and starts the engine once, then answers part after part.

    Args:
        job: whose parts.
        bundle: what answers.
        make_engine: makes an unstarted engine.
    """

    def __init__(self, job: Job, bundle: Bundle, make_engine: Callable[[], Engine]) -> None:
        assert isinstance(job.settings, JobSettings)
        self._job, self._settings = job, job.settings
        self._loop = asyncio.new_event_loop()
        self._engine = make_engine()
        self._loop.run_until_complete(self._engine.start())
        catalogue = Catalogue(bundle, redis_url=NO_REDIS, data_dir=Path(), timeout_s=1.0)
        rows = max(BEAM_ROWS_IN_WORK, self._settings.beam_width)
        self._recommender = Recommender(bundle, catalogue, self._engine, Admission(rows))
        self._in_work = asyncio.Semaphore(max(1, rows // self._settings.beam_width))

    def answer(self, number: int) -> int:
        """Answer a part and put its file in place; returns its number of users.

        Raises:
            BatchError: the engine failed; nothing is written, and the job can be started again.
        """
        histories = self._job.rows_of(number)
        answers = self._loop.run_until_complete(self._answer_all(histories))
        self._job.finish_part(number, answers)
        return answers.height

    def close(self) -> None:
        """Stop the engine. Idempotent."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._engine.close())
            self._loop.close()

    async def _answer_all(self, histories: pl.DataFrame) -> pl.DataFrame:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._answer_one(history)) for history in histories["history"].to_list()
                ]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others were cancelled, or failed alike
        rows = [
            {"user_id": user_id, **_row(task.result())}
            for user_id, task in zip(histories["user_id"], tasks, strict=True)
        ]
        return pl.DataFrame(rows, schema=ANSWER_SCHEMA)

    async def _answer_one(self, history: list[str]) -> Recommendation:
        settings = self._settings
        query = Query(
            history=tuple(history),
            k=settings.k,
            beam_width=max(settings.k, settings.beam_width),
            exclude_seen=settings.exclude_seen,
            filter=settings.filter,
        )
        async with self._in_work:
            answer = await self._recommender.recommend(query, Timings())
        if "engine" in answer.missing:
            # The service may answer with popular items meanwhile; a file would keep them for good.
            raise BatchError("the engine died; start the same command again, and it goes on")
        return answer


def _row(answer: Recommendation) -> dict[str, Any]:
    return {
        "item_ids": [record.item_id for record in answer.records],
        "logprobs": [pick.logprob for pick in answer.picks],
        "sources": [pick.source for pick in answer.picks],
        "unknown_items": answer.unknown_items,
    }
