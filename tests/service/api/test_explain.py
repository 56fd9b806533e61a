"""`explain`: what the model and the semantic IDs know about a recommendation."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio


async def ask(running, **body):
    response = await running.client.post("/recommend", json={"explain": True, **body})
    assert response.status_code == 200, response.text
    return response.json()


async def test_effects_are_differences_of_the_models_own_scores(start_app):
    async with start_app() as running:
        answer = await ask(running, history=["item-5", "item-22", "item-9"], k=5)
        without = await ask(running, history=["item-5", "item-22"], k=40)
        logprob_of = {item["item_id"]: item["logprob"] for item in without["items"]}
        for item in answer["items"]:
            effects = {e["item_id"]: e["logprob_change"] for e in item["explanation"]["effects"]}
            assert effects.keys() == {"item-5", "item-22", "item-9"}
            assert effects["item-9"] == pytest.approx(item["logprob"] - logprob_of[item["item_id"]], abs=1e-5)
            # The fake model reads the last item of the history only.
            assert effects["item-5"] == effects["item-22"] == pytest.approx(0, abs=1e-6)
            assert item["explanation"]["effects"][0]["logprob_change"] == max(effects.values())
        assert answer["items"][0]["explanation"]["effects"][0]["item_id"] == "item-9"


async def test_shared_codes_name_the_nearest_items_of_the_history(start_app):
    async with start_app() as running:
        answer = await ask(running, history=["item-5", "item-22", "item-9"], k=40)
        shared = {item["item_id"]: item["explanation"]["shared"] for item in answer["items"]}
        assert shared["item-9"][0] == {"item_id": "item-9", "levels": 3}
        assert shared["item-10"] == [
            {"item_id": "item-9", "levels": 2},  # items 8 to 11 begin with 0, 2
            {"item_id": "item-5", "levels": 1},  # items 0 to 15 begin with 0
        ]
        assert shared["item-39"] == []


async def test_words_come_from_the_titles_below_the_codes(start_app):
    async with start_app() as running:
        answer = await ask(running, history=["item-9"], k=40)
        words = {item["item_id"]: item["explanation"]["code_words"] for item in answer["items"]}
        assert words["item-9"][1] == ["chair"]  # items 8 to 11 are the chairs of this beginning
        assert words["item-9"][2][:1] == ["blue"] or words["item-9"][2][:1] == ["chair"]


async def test_popular_items_and_single_items_have_no_effects(start_app):
    async with start_app() as running:
        for history in ([], ["item-9"]):
            answer = await ask(running, history=history, k=3)
            assert all(item["explanation"]["effects"] == [] for item in answer["items"])
        plain = await running.client.post("/recommend", json={"history": ["item-9"], "k": 1})
        assert "explanation" not in plain.json()["items"][0]


async def test_without_the_engine_the_ids_still_explain_and_the_answer_says_degraded(start_app):
    async with start_app() as running:
        running.engine.kill()
        answer = await ask(running, history=["item-5", "item-9"], k=40)
        assert answer["degraded"]
        assert any(item["explanation"]["shared"] for item in answer["items"])
