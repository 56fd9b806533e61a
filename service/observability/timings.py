"""How long the stages of one request took: for the reply, the headers, the metrics and the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.observability import metrics
from service.observability.traces import span


class Timings:
    """Stage name -> milliseconds, in the order of first use.

    Attributes:
        variant: which bundle the stages are about; see `service.observability.metrics`.
    """

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self.variant = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block. A name used twice adds up; a block that raises is counted too."""
        started = time.perf_counter()
        try:
            with span(f"gtirec.{name}"):
                yield
        finally:
            seconds = time.perf_counter() - started
            self.ms[name] = round(self.ms.get(name, 0.0) + 1000 * seconds, 3)
            metrics.STAGE_SECONDS.labels(stage=name, variant=self.variant).observe(seconds)

    def headers(self) -> dict[str, str]:
        """`X-Stage-Decode-Ms: 12.3` and so on."""
        return {f"X-Stage-{name.title()}-Ms": f"{ms:.1f}" for name, ms in self.ms.items()}
