"""`python -m service batch` and `embed`: the whole job with a progress bar; the last line is JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from service.batch.job import AnySettings, Job, JobSettings
from service.batch.parts import start_worker
from service.bundle import load_bundle
from service.engine.select import EngineOptions
from service.settings import Settings


def run(
    settings: Settings,
    source: Path,
    directory: Path,
    asked: AnySettings,
    *,
    num_workers: int,
    cpus: float,
    gpus: float,
) -> None:
    """Answer every row of `source` into `directory`, or what is left of them.

    Raises:
        BundleError, BatchError, EngineError: with a sentence.
    """
    bundle = load_bundle(settings.bundle, verify=settings.verify_bundle, expected_id=settings.bundle_id)
    if isinstance(asked, JobSettings) and not asked.beam_width:
        asked = asked.model_copy(update={"beam_width": settings.beam_width(bundle.manifest.beam_width)})
    job = Job.open(source, directory, asked, bundle.bundle_id)
    parts, began = job.open_parts(), time.monotonic()
    options = EngineOptions(
        dtype=settings.dtype,
        max_beam_rows=max(1024, asked.beam_width if isinstance(asked, JobSettings) else 0),
        gpu_memory_utilization=settings.gpu_memory_utilization,
        cpu_kv_cache_gib=settings.cpu_kv_cache_gib,
    )

    def alone() -> Iterator[int]:
        with closing(start_worker(job, bundle, settings.engine, options)) as worker:
            for number in parts:
                yield worker.answer(number)

    def on_ray() -> Iterator[int]:
        from service.batch.on_ray import answer_parts

        resources = {"num_workers": num_workers, "cpus": cpus, "gpus": gpus}
        return answer_parts(job, parts, settings.bundle, settings.engine, options, **resources)

    what = "users" if asked.kind == "recommend" else "items"
    num_answered = 0
    with tqdm(total=job.num_rows, unit=what[:-1], desc=asked.kind, mininterval=1.0) as bar:
        bar.update(job.num_rows - sum(map(job.num_rows_of, parts)))
        for rows in (alone() if num_workers == 1 else on_ray()) if parts else ():
            num_answered += rows
            bar.update(rows)
    seconds = time.monotonic() - began
    summary = {
        what: job.num_rows,
        "answered_now": num_answered,
        "parts": job.num_parts,
        "seconds": round(seconds, 2),
        f"{what}_per_s": round(num_answered / seconds, 2),
        "bundle_id": bundle.bundle_id,
        "output": str(directory),
    }
    print(json.dumps(summary), flush=True)
