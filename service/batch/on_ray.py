"""Runs a job's parts on Ray Data: one engine per actor, parts handed to whoever is free.

Ray restarts an actor that dies and gives its part to another; what is in place already is skipped by
the next start. The output directory and the bundle must be seen by every machine of the cluster.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from service.batch.job import Job
from service.batch.parts import start_worker
from service.bundle import load_bundle
from service.engine.select import EngineOptions
from service.errors import BatchError


class PartAnswerer:
    """What Ray Data calls: a batch of part numbers in, numbers of rows out."""

    def __init__(self, directory: str, bundle: str, engine: str, options: EngineOptions) -> None:
        opened = load_bundle(Path(bundle), verify=False)  # whoever began the job has hashed it
        self._worker = start_worker(Job.resume(Path(directory)), opened, engine, options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [self._worker.answer(int(number)) for number in batch["part"]]
        return {"part": batch["part"], "rows": np.array(rows)}


def answer_parts(
    job: Job,
    parts: list[int],
    bundle: Path,
    engine: str,
    options: EngineOptions,
    *,
    num_workers: int,
    cpus: float,
    gpus: float,
) -> Iterator[int]:
    """Answer parts; yields the number of rows of each as it is done.

    Args:
        job: begun in its directory.
        parts: what to answer.
        bundle: directory of the bundle.
        engine, options: see `service.engine.select`.
        num_workers: engines at a time.
        cpus, gpus: what each of them takes of the cluster.

    Raises:
        BatchError: Ray is not installed, or a part failed.
    """
    try:
        ray: Any = importlib.import_module("ray")
        data: Any = importlib.import_module("ray.data")
    except ModuleNotFoundError as error:
        raise BatchError(
            f"--workers above 1 needs Ray ({error}): pip install 'ray[data]', or use --workers 1"
        ) from error
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=True)
    data.DataContext.get_current().enable_progress_bars = False
    numbers = data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    done = numbers.map_batches(
        PartAnswerer,
        fn_constructor_args=(str(job.directory.absolute()), str(bundle.absolute()), engine, options),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=num_workers),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    try:
        for row in done.iter_rows():
            yield int(row["rows"])
    except ray.exceptions.RayError as error:
        raise BatchError(f"a worker failed ({type(error).__name__}); start the same command again") from error
