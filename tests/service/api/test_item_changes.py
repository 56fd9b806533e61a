"""Changing items over HTTP, alone and in bulk, and what /recommend makes of it; similar items."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.anyio

LAMP = {"title": "New white lamp", "description": "A new thing.", "metadata": {"colour": "white", "price": 5}}


async def recommended(running, **body):
    answer = (await running.client.post("/recommend", json={"history": ["item-5"], "k": 50, **body})).json()
    return answer, [item["item_id"] for item in answer["items"]]


async def shown(running, version):
    await running.until(lambda: running.services.catalogue.snapshot.version >= version)


def lines(*values):
    return "\n".join(value if isinstance(value, str) else json.dumps(value) for value in values)


async def bulk(running, body, **params):
    return await running.client.post("/items/bulk", content=body, params=params)


async def test_a_new_item_is_recommended(start_app):
    async with start_app() as running:
        _, before = await recommended(running)
        response = await running.client.put("/items/sku-1", json=LAMP)
        assert response.status_code == 201 and response.headers["etag"] == '"1"'
        written = response.json()
        assert written["created"] and written["catalogue_version"] == 1
        await shown(running, 1)
        answer, ids = await recommended(running)
        assert sorted(ids) == sorted([*before, "sku-1"]) and answer["catalogue_version"] == 1
        item = next(item for item in answer["items"] if item["item_id"] == "sku-1")
        assert item["semantic_id"] == written["semantic_id"] and item["metadata"]["price"] == 5
        assert item["source"] == "model"
        answer, ids = await recommended(running, history=["sku-1"], exclude_seen=True)
        assert (
            answer["unknown_items"] == [] and "sku-1" not in ids and answer["items"][0]["source"] == "model"
        )
        found = (await running.client.get("/items/sku-1")).json()
        assert found["version"] == 1 and found["description"] == "A new thing." and found["available"]
        assert [i["item_id"] for i in (await running.client.get("/items?query=new")).json()["items"]] == [
            "sku-1"
        ]


async def test_a_deleted_item_is_out_of_the_very_next_answer(start_app):
    async with start_app() as running:
        _, before = await recommended(running)
        gone = next(item_id for item_id in before if item_id != "item-5")
        response = await running.client.delete(f"/items/{gone}")
        assert response.status_code == 200 and response.json()["semantic_id"] is None
        answer, ids = await recommended(running)  # no waiting
        assert sorted(ids) == sorted(set(before) - {gone})
        assert all(item["source"] == "model" for item in answer["items"][:5])
        assert (await running.client.get(f"/items/{gone}")).status_code == 404
        assert (await running.client.delete(f"/items/{gone}")).status_code == 404
        answer, _ = await recommended(running, history=[gone])
        await shown(running, 1)
        answer, _ = await recommended(running, history=[gone])
        assert answer["unknown_items"] == [gone]


async def test_out_of_stock_and_back(start_app):
    async with start_app() as running:
        response = await running.client.patch("/items/item-5", json={"available": False})
        assert response.status_code == 200
        answer, ids = await recommended(running)
        assert "item-5" not in ids and answer["unknown_items"] == []
        await shown(running, 1)
        answer, ids = await recommended(running)
        assert "item-5" not in ids and answer["unknown_items"] == [] and len(ids) == 39
        assert not (await running.client.get("/items/item-5")).json()["available"]
        await running.client.patch("/items/item-5", json={"available": True})
        await shown(running, 2)
        assert "item-5" in (await recommended(running))[1]


async def test_the_text_shown_is_the_newest(start_app):
    async with start_app() as running:
        before = (await running.client.get("/items/item-6")).json()
        await running.client.patch("/items/item-6", json={"metadata": {"price": 7, "colour": None}})
        answer, _ = await recommended(running)
        item = next(item for item in answer["items"] if item["item_id"] == "item-6")
        assert item["metadata"] == {"price": 7} and item["semantic_id"] == before["semantic_id"]


async def test_conditions(start_app):
    async with start_app() as running:
        client = running.client
        assert (await client.get("/items/item-3")).headers["etag"] == '"0"'
        changed = await client.patch("/items/item-3", json={"popularity": 1}, headers={"If-Match": '"0"'})
        assert changed.status_code == 200 and changed.headers["etag"] == '"1"'
        lost = await client.patch("/items/item-3", json={"popularity": 2}, headers={"If-Match": '"0"'})
        assert lost.status_code == 409 and lost.json()["error_type"] == "version_conflict"
        assert "at version 1, not at version 0" in lost.json()["error"]
        lost = await client.put("/items/item-3", json=LAMP, headers={"If-None-Match": "*"})
        assert lost.status_code == 409
        lost = await client.delete("/items/item-3", headers={"If-Match": 'W/"0"'})
        assert lost.status_code == 409
        for headers in ({"If-Match": "abc"}, {"If-Match": "*"}, {"If-None-Match": '"1"'}):
            assert (await client.put("/items/x", json=LAMP, headers=headers)).status_code == 422
        assert running.services.catalogue.version == 1


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "title"),
        ({"title": ""}, "title"),
        ({"title": "x", "colour": "red"}, "colour"),
        ({"title": "x", "metadata": {"a": "y" * 20_000}}, "16384 bytes"),
        ({"title": "x", "metadata": json.loads("[" * 20 + "]" * 20)}, "metadata"),
        ({"title": "x", "metadata": {"a": json.loads("[" * 20 + "]" * 20)}}, "nested"),
        ({"title": "x", "popularity": -1}, "popularity"),
        ({"title": "x", "available": 1}, "available"),
    ],
)
async def test_bad_items_are_refused_with_a_sentence(start_app, body, word):
    async with start_app() as running:
        response = await running.client.put("/items/sku-1", json=body)
        assert response.status_code == 422 and word in response.json()["error"]
        nan = await running.client.put("/items/x", content=b'{"title": "x", "metadata": {"a": NaN}}')
        assert nan.status_code == 422
        assert running.services.catalogue.version == 0


async def test_redis_away_refuses_changes_and_answers_questions(start_app, clean_redis):
    async with start_app() as running:
        await running.client.delete("/items/item-1")
        clean_redis.kill()
        await running.until(lambda: running.services.catalogue.status.state == "down")
        response = await running.client.put("/items/sku-1", json=LAMP)
        assert response.status_code == 503 and "Redis is away" in response.json()["error"]
        answer, ids = await recommended(running)
        assert answer["degraded"] and "item-1" not in ids
        clean_redis.start()


async def test_bulk_does_everything_in_one_version(start_app):
    async with start_app() as running:
        body = lines(
            {"item_id": "sku-1", **LAMP},
            "",
            {"op": "put", "item_id": "sku-2", "title": "New desk"},
            {"op": "patch", "item_id": "item-3", "available": False},
            {"op": "delete", "item_id": "item-4"},
        )
        response = await bulk(running, body)
        assert response.status_code == 200, response.text
        assert response.json() == {
            "num_written": 4,
            "num_skipped": 0,
            "skipped": [],
            "catalogue_version": 1,
        }
        await shown(running, 1)
        _, ids = await recommended(running)
        assert {"sku-1", "sku-2"} <= set(ids) and not {"item-3", "item-4"} & set(ids)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2: the body is not valid JSON"),
        ("[]", "line 2: "),
        ({"op": "steal", "item_id": "item-1"}, "line 2: "),
        ({"item_id": "x"}, "line 2: 'title' is missing; nothing was changed"),
        ({"op": "delete", "item_id": "item-1", "title": "x"}, "line 2: 'title' is not a field"),
        ({"op": "delete", "item_id": "nobody"}, "line 2: the catalogue holds no item"),
        ({"op": "patch", "item_id": "nobody", "popularity": 3}, "line 2: the catalogue holds no item"),
    ],
)
async def test_one_bad_line_stops_or_is_skipped(start_app, line, sentence):
    async with start_app() as running:
        body = lines({"op": "delete", "item_id": "item-2"}, line, {"item_id": "sku-1", **LAMP})
        response = await bulk(running, body)
        assert response.status_code in (404, 422)
        assert response.json()["error"].startswith(sentence) and running.services.catalogue.version == 0
        report = (await bulk(running, body, on_bad_row="skip")).json()
        assert (report["num_written"], report["num_skipped"]) == (2, 1)
        assert report["skipped"][0]["line"] == 2 and report["catalogue_version"] == 1


async def test_a_full_catalogue_says_so_and_keeps_what_it_has(start_app):
    async with start_app() as running:
        response = await bulk(running, lines(*({"item_id": f"sku-{n}", **LAMP} for n in range(64))))
        assert response.status_code == 409 and response.json()["error_type"] == "catalogue_full"
        assert "all semantic IDs of 4 x 4 x 4 codes" in response.json()["error"]
        assert running.services.catalogue.version == 0
        response = await bulk(running, lines(*({"item_id": f"sku-{n}", **LAMP} for n in range(20))))
        assert response.json()["num_written"] == 20


async def test_bulk_limits(start_app):
    async with start_app(max_bulk_rows=2) as running:
        deletes = [{"op": "delete", "item_id": f"item-{n}"} for n in range(3)]
        response = await bulk(running, lines(*deletes))
        assert response.status_code == 422 and "more than 2 lines" in response.json()["error"]
        assert (await bulk(running, "\n\n")).status_code == 422
        assert running.services.catalogue.version == 0


async def test_similar_items_share_the_beginning_of_the_id_and_the_words(start_app):
    async with start_app() as running:
        await running.client.put("/items/sku-1", json={"title": "Red lamp", "description": ""})
        await shown(running, 1)
        answer = (await running.client.get("/items/sku-1/similar?k=5")).json()
        assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5]
        assert "sku-1" not in {item["item_id"] for item in answer["items"]}
        best = answer["items"][0]
        assert best["title"].startswith("Red lamp") and best["similarity"] > 0.9
        values = [item["similarity"] for item in answer["items"]]
        assert values == sorted(values, reverse=True)
        for item in answer["items"]:
            pairs = zip(answer["semantic_id"].split("<"), item["semantic_id"].split("<"), strict=True)
            same = [a == b for a, b in pairs][1:]
            assert item["shared_levels"] == (same.index(False) if False in same else len(same))
        assert len((await running.client.get("/items/sku-1/similar?k=100")).json()["items"]) == 40
        await running.client.delete(f"/items/{best['item_id']}")
        again = (await running.client.get("/items/sku-1/similar?k=5")).json()["items"]
        assert best["item_id"] not in {item["item_id"] for item in again}
        assert (await running.client.get("/items/nobody/similar")).status_code == 404


async def test_info_counts_changes(start_app):
    async with start_app() as running:
        await running.client.delete("/items/item-1")
        info = (await running.client.get("/info")).json()
        assert info["catalogue_version"] == 1 and info["num_items"] == 39
        await shown(running, 1)
        info = (await running.client.get("/info")).json()
        assert info["decode_version"] == 1 and info["num_items"] == 39
        await running.until(
            lambda: [r["decode_version"] for r in running.services.follower.replicas.values()] == [1]
        )
        [replica] = (await running.client.get("/info")).json()["replicas"].values()
        assert replica["catalogue_version"] == 1 and replica["is_ready"]


async def test_filters_see_changed_items(start_app):
    async with start_app() as running:
        await running.client.put("/items/sku-1", json={"title": "New lamp", "metadata": {"price": 5}})
        await running.client.patch("/items/item-6", json={"metadata": {"price": 12.5, "colour": "gold"}})
        await running.client.patch("/items/item-7", json={"metadata": {"price": "free", "colour": 3}})
        await shown(running, 3)
        for condition, expected in (
            ({"price": {"lt": 10}}, {"sku-1"}),
            ({"price": {"gte": 5}}, {"sku-1", "item-6"}),
            ({"colour": "gold"}, {"item-6"}),
            ({"title": "New lamp"}, {"sku-1"}),
        ):
            answer, ids = await recommended(running, filter=condition)
            assert set(ids) == expected and answer["short"], condition
        whites = {f"item-{n}" for n in range(40) if n % 4 == 3} - {"item-7"}
        assert set((await recommended(running, filter={"colour": "white"}))[1]) == whites
        assert "price" in (await running.client.get("/info")).json()["filter_attributes"]
