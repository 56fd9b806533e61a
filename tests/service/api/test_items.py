"""GET /items and GET /items/{item_id}."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio


async def test_one_item_with_description_and_sid(start_app):
    async with start_app() as running:
        assert (await running.client.get("/items/item-9")).json() == {
            "item_id": "item-9",
            "title": "Blue chair No. 9",
            "description": "A blue thing.",
            "metadata": {"colour": "blue"},
            "popularity": 23,
            "available": True,
            "version": 0,
            "semantic_id": "<a_0><b_2><c_1>",
        }
        assert (await running.client.get("/items/item-8")).json()["description"] == ""


async def test_second_item_of_a_shared_sid(start_app):
    async with start_app() as running:
        assert (await running.client.get("/items/item-0")).json()["title"] == "Red lamp No. 0"
        assert (await running.client.get("/items/item-1")).json()["title"] == "Blue lamp No. 1"


@pytest.mark.parametrize("item_id", ["nobody", "item-9/", "a/b", "%00", "%ff", "item-9 ", "a" * 256])
async def test_unknown_items_are_404(start_app, item_id):
    async with start_app() as running:
        response = await running.client.get(f"/items/{item_id}")
        assert response.status_code == 404, response.text


async def test_search_finds_every_word_and_ranks(start_app):
    async with start_app() as running:

        async def titles(query: str, limit: int = 50) -> list[str]:
            response = await running.client.get("/items", params={"query": query, "limit": limit})
            assert response.status_code == 200, response.text
            return [item["title"] for item in response.json()["items"]]

        assert await titles("  CHAIR   blue ") == ["Blue chair No. 9", "Blue chair No. 29"]
        assert all("lamp" in title for title in await titles("lamp"))
        assert await titles("item-17") == ["Blue mirror No. 17"]
        assert await titles("no such thing") == []
        assert await titles(".*") == []
        assert len(await titles("", 7)) == 7


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 51}, {"limit": "x"}, {"query": "a" * 201}])
async def test_search_limits(start_app, params):
    async with start_app() as running:
        response = await running.client.get("/items", params=params)
        assert response.status_code == 422
        assert next(iter(params)) in response.json()["error"]
