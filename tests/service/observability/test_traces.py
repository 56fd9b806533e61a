"""Spans of a request and its stages, with nothing of the user in them."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio


async def test_a_request_is_a_tree_of_spans_without_user_text(start_app):
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter = memory.InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    if not isinstance(provider, sdk.TracerProvider):  # it can be set once per process
        provider = sdk.TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with start_app() as running:
        body = {"user_id": "ann-4711", "history": ["item-1"]}
        assert (await running.client.post("/recommend", json=body)).status_code == 200
        await running.client.get("/users/ann-4711/history")
    spans = exporter.get_finished_spans()
    requests = {span.attributes["http.route"]: span for span in spans if span.name == "gtirec.request"}
    root = requests["/recommend"]
    assert root.attributes["http.response.status_code"] == 200
    stages = {span.name for span in spans if span.parent and span.parent.span_id == root.context.span_id}
    assert {"gtirec.resolve", "gtirec.fill", "gtirec.items"} <= stages
    assert "ann-4711" not in "".join(span.to_json() for span in spans)
