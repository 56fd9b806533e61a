"""The loop closes: what the service was told, training reads."""

from __future__ import annotations

import json

import pytest

from service.events import HISTORY_KINDS
from service.events.export import export
from service.settings import Settings
from training.items.bad_rows import BadRows
from training.items.config import OwnConfig
from training.items.readers import own

pytestmark = pytest.mark.anyio


async def test_training_reads_what_was_exported(start_app, clean_redis, small_bundle_dir, tmp_path):
    def view(user_id: str, item_id: str, moment: str, kind: str = "view") -> dict:
        stamp = f"2026-11-{moment}T00:00:00Z"
        return {"user_id": user_id, "item_id": item_id, "type": kind, "timestamp": stamp}

    told = [
        view('a,"nn"', "item-3", "02"), view('a,"nn"', "item-1", "01"), view("bob", "item-2", "03"),
        view("bob", "unheard-of", "04"), view("bob", "item-5", "05", "impression"),
    ]  # fmt: skip
    async with start_app(event_retention_days=10_000) as running:
        bulk = "\n".join(json.dumps(one) for one in told)
        assert (await running.client.post("/events/bulk", content=bulk)).json()["recorded"] == 5
        response = await running.client.delete("/items/item-39")
        assert response.status_code < 300, response.text
        settings = Settings(bundle=small_bundle_dir, redis_url=clean_redis.url)
        counts = await export(settings, tmp_path / "out", HISTORY_KINDS)
    assert counts == {"items": 39, "users": 2, "interactions": 3, "unknown_items": 1}
    config = OwnConfig(items=tmp_path / "out/items.jsonl", interactions=tmp_path / "out/interactions.csv")
    items, events = own.read(config, BadRows())
    assert len(items) == 39 and "item-39" not in items.index_of
    found = sorted(events.select("user_id", "item", "time").rows(), key=lambda row: row[2])
    assert [(user, item) for user, item, _ in found] == [
        ('a,"nn"', items.index_of["item-1"]),
        ('a,"nn"', items.index_of["item-3"]),
        ("bob", items.index_of["item-2"]),
    ]
