"""OpenTelemetry spans: one per request, one per stage. They cost nothing until a provider is configured.

`opentelemetry-instrument --service_name gti-rec python -m service ...` (package opentelemetry-distro)
configures one; so does any code that sets a tracer provider. Without the package there are no spans.
Spans carry routes, statuses and stage names, never a user's text or id.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import trace
except ImportError:  # comes with vLLM; a machine that serves with torch may lack it
    trace = None


class Span:
    """What callers may tell about a span; does nothing where there is none."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def set(self, name: str, value: str | int | float | bool) -> None:
        """Add an attribute."""
        if self._span is not None:
            self._span.set_attribute(name, value)


@contextmanager
def span(name: str) -> Iterator[Span]:
    """A span around a block, inside the span of whoever called."""
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield Span()  # no provider was configured: even a span that does nothing costs 20 us
        return
    with trace.get_tracer("gtirec").start_as_current_span(name) as current:
        yield Span(current)
