"""Probes, facts, metrics, log lines, and the page's files."""

from __future__ import annotations

import json
import logging
import re

import polars as pl
import pytest

from service.bundle import load_bundle
from service.catalogue import Catalogue
from service.rollout import Serving
from tests.conftest import small_items, write_small_bundle

pytestmark = pytest.mark.anyio


async def test_not_ready_until_a_request_was_verified(start_app, fake_engine, small_bundle):
    fake_engine.delay_s = 0.3
    async with start_app(engine=fake_engine, wait=False) as running:
        assert (await running.client.get("/livez")).status_code == 200
        response = await running.client.get("/readyz")
        assert response.status_code == 503
        body = response.json()
        assert body["ready"] is False
        assert "the engine is being started" in body["reasons"]
        answer = (await running.client.post("/recommend", json={"history": ["item-1"]})).json()
        assert answer["degraded"] and {item["source"] for item in answer["items"]} == {"popular"}
        await running.until_ready()
        assert len(fake_engine.requests) == 1  # the canary
        response = await running.client.get("/readyz")
        assert response.status_code == 200 and response.json()["reasons"] == []


async def test_readiness_fails_while_draining(start_app):
    async with start_app() as running:
        running.services.drain.begin()
        response = await running.client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["reasons"] == ["the service is shutting down"]
        answered = await running.client.post("/recommend", json={"history": ["item-1"]})
        assert answered.status_code == 200  # until the port closes


async def test_info_names_what_is_served(start_app, small_bundle):
    async with start_app(max_beam_width=99, max_k=50) as running:
        info = (await running.client.get("/info")).json()
        assert info["bundle_id"] == small_bundle.bundle_id
        assert info["engine"] == "fake" and info["catalogue"] == "ready"
        assert info["num_items"] == 40 and info["codebook_sizes"] == [4, 4, 4]
        assert info["limits"]["max_beam_width"] == 99 and info["limits"]["history_limit"] == 5


async def test_metrics_count_requests_without_ids_in_labels(start_app):
    async with start_app() as running:
        await running.client.post("/recommend", json={"history": ["item-1", "secret-item"], "k": 3})
        await running.client.post("/recommend", json={"k": 0})
        await running.client.get("/items/item-1")
        text = (await running.client.get("/metrics")).text
        assert re.search(r'gtirec_requests_total\{outcome="ok",route="/recommend",variant="a"\} [1-9]', text)
        assert re.search(
            r'gtirec_requests_total\{outcome="invalid",route="/recommend",variant=""\} [1-9]', text
        )
        assert re.search(r'gtirec_stage_duration_seconds_count\{stage="decode",variant="a"\} [1-9]', text)
        assert re.search(r'gtirec_recommendations_returned_total\{source="model",variant="a"\} [1-9]', text)
        assert re.search(r'gtirec_recommended_tier_total\{tier="(head|tail|cold)",variant="a"\} [1-9]', text)
        coverage = re.search(r'gtirec_recommended_coverage_ratio\{variant="a"\} (\S+)', text)
        assert coverage is not None and float(coverage[1]) == pytest.approx(3 / 40, rel=0.1)
        assert 'route="/items/{item_id}"' in text or 'route="/items/{item_id:path}"' in text
        assert "secret-item" not in text and "gtirec_inflight_beam_rows 0.0" in text


async def test_one_log_line_per_request_without_text_of_users(start_app, caplog):
    caplog.set_level(logging.DEBUG, "service")
    async with start_app() as running:
        caplog.clear()
        body = {"history": ["item-1", "secret-item"], "user_id": "secret-user", "k": 3}
        await running.client.post("/recommend", json=body)
        await running.client.post("/recommend", json={"history": ["secret-item"], "k": 0})
        await running.client.get("/items/secret-item")
        await running.client.get("/items?query=secret-words")
        lines = [record for record in caplog.records if record.name == "service.requests"]
        assert [line.status for line in lines] == [200, 422, 404, 200]
        assert lines[0].num_unknown == 1 and lines[0].sources == {"model": 3}
        assert lines[0].stages_ms["decode"] >= 0
        assert lines[1].error_type == "validation_error"
        assert "secret" not in json.dumps([vars(record) for record in caplog.records], default=str)


async def test_pages_use_only_files_of_ours(start_app):
    async with start_app() as running:
        for path in ("/", "/docs"):
            page = (await running.client.get(path)).text
            assert page.lower().startswith("<!doctype html>")
            references = re.findall(r'(?:src|href)="([^"]+)"', page)
            assert references
            for reference in references:
                assert reference.startswith(("/", "#")), reference
                if reference.startswith("/"):
                    assert (await running.client.get(reference)).status_code == 200, reference
            assert not re.search(r"<script>|<style>| on[a-z]+=| style=", page)  # the content policy forbids


async def test_openapi_documents_every_status_with_examples(start_app):
    async with start_app() as running:
        schema = (await running.client.get("/openapi.json")).json()
        recommend = schema["paths"]["/recommend"]["post"]
        expected = {"200", "401", "403", "413", "422", "429", "500", "503", "504"}
        assert recommend["responses"].keys() == expected
        error = recommend["responses"]["422"]["content"]["application/json"]["schema"]
        assert error["$ref"].endswith("/ErrorBody")
        assert schema["components"]["schemas"]["RecommendRequest"]["examples"]
        history = schema["components"]["schemas"]["RecommendRequest"]["properties"]["history"]
        assert {"string"} == {each["type"] for each in history["items"]["anyOf"] if "type" in each}
        assert "/items/{item_id}" in schema["paths"]
        assert "/" not in schema["paths"]


async def test_openapi_follows_the_items_and_the_bundle(start_app, clean_redis, tmp_path):
    async def filter_of(running):
        return (await running.client.get("/openapi.json")).json()["components"]["schemas"]["Filter"]

    items, codes = small_items()
    brands = pl.lit('{"brand": "Oak"}').alias("metadata")
    other = load_bundle(write_small_bundle(tmp_path, items.with_columns(brands), codes, "other"))
    async with start_app() as running:
        assert "colour" in (await filter_of(running))["properties"]
        changed = {"title": "New red lamp", "metadata": {"colour": "red", "price": 5}}
        assert (await running.client.put("/items/new-1", json=changed)).status_code == 201
        await running.until(lambda: running.services.catalogue.snapshot.version == 1)
        assert {"colour", "price"} <= (await filter_of(running))["properties"].keys()
        services = running.services
        catalogue = Catalogue(other, redis_url=clean_redis.url, data_dir=tmp_path / "other", timeout_s=1)
        before = services.current.switch(Serving(other, catalogue, services.engine, services.recommender))
        try:
            properties = (await filter_of(running))["properties"]
            assert "brand" in properties and "colour" not in properties
        finally:
            services.current.switch(before)
            await catalogue.close()
        assert "colour" in (await filter_of(running))["properties"]
