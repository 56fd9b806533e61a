"""POST /recommend over the whole stack but the model: real Redis, real trie, real beam search."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from service.bundle import ItemPrior, Relation
from service.picks import Rotation

pytestmark = pytest.mark.anyio

ALL = 40


async def ask(running, status: int = 200, **body):
    response = await running.client.post("/recommend", json=body)
    assert response.status_code == status, response.text
    return response.json()


async def test_answers_with_k_items_best_first(start_app, small_bundle):
    async with start_app() as running:
        answer = await ask(running, history=["item-5", "item-9"], k=6)
        items = answer["items"]
        assert [item["rank"] for item in items] == [1, 2, 3, 4, 5, 6]
        assert len({item["item_id"] for item in items}) == 6
        logprobs = [item["logprob"] for item in items]
        assert logprobs == sorted(logprobs, reverse=True)
        assert all(item["source"] == "model" for item in items)
        assert items[0]["item_id"] == "item-9"  # the fake model likes the last item of the history best
        assert items[0]["semantic_id"] == "<a_0><b_2><c_1>"
        assert items[0]["title"] == "Blue chair No. 9"
        assert items[0]["metadata"] == {"colour": "blue"}
        assert items[0]["probability"] == pytest.approx(math.exp(items[0]["logprob"]))
        assert not answer["short"] and not answer["degraded"] and answer["unknown_items"] == []
        assert answer["bundle_id"] == small_bundle.bundle_id
        assert answer["catalogue_version"] == 0
        assert {"resolve", "decode", "fill", "items", "total"} <= answer["timings"].keys()


async def test_the_bundles_prior_orders_what_the_model_proposes(start_app, small_bundle):
    bias = np.zeros(ALL, dtype=np.float32)
    bias[small_bundle.row_of["item-30"]] = 100.0
    row, again = small_bundle.row_of["item-9"], small_bundle.row_of["item-12"]
    starts = (np.arange(ALL + 1) > row).astype(np.int64)  # item 9 is followed by item 12 and no other by any
    follows = Relation("next", 10.0, 0.01, 0.5, starts, np.array([again]), np.array([5.0]))
    async with start_app() as running:
        asked = {"history": ["item-9"], "k": 4, "beam_width": 40}
        plain = [item["item_id"] for item in (await ask(running, **asked))["items"]]
        recommender = running.services.recommender
        recommender._bundle = dataclasses.replace(small_bundle, prior=ItemPrior(5, bias, (follows,)))
        items = (await ask(running, **asked))["items"]
        expected = ["item-30", "item-12", *[name for name in plain if name != "item-12"]][:4]
        assert [item["item_id"] for item in items] == expected
        assert items[0]["logprob"] < items[2]["logprob"]  # the model's own, whatever the order
        alone = (await ask(running, **asked, exclude_items=["item-30"]))["items"]
        assert alone[0]["item_id"] == "item-12"


async def test_prompt_is_the_bundles_template_over_the_newest_known_items(start_app, small_bundle):
    async with start_app() as running:
        await ask(running, history=[f"item-{n}" for n in range(20, 28)] + ["nobody"])
        row_of, manifest = small_bundle.row_of, small_bundle.manifest
        newest = [row_of[f"item-{n}"] for n in range(23, 28)]  # history_limit is 5
        expected = manifest.prompt.token_ids(manifest.tokens_of(small_bundle.semantic_ids[newest]))
        assert list(running.engine.requests[-1].prompt_token_ids) == expected


async def test_unknown_items_are_skipped_and_listed_once(start_app):
    async with start_app() as running:
        answer = await ask(running, history=["x", "item-3", "y", "x"], exclude_items=["z"])
        assert answer["unknown_items"] == ["x", "y", "z"]
        assert answer["items"][0]["source"] == "model"


@pytest.mark.parametrize("history", [[], ["x"], ["x", "y"]])
async def test_a_user_without_known_items_gets_the_popular_list(start_app, small_bundle, history):
    async with start_app() as running:
        num_decodes = len(running.engine.requests)
        answer = await ask(running, history=history, k=7)
        best = small_bundle.items["item_id"].gather(small_bundle.popular_rows[:7]).to_list()
        assert [item["item_id"] for item in answer["items"]] == best
        assert {item["source"] for item in answer["items"]} == {"popular"}
        assert {item["logprob"] for item in answer["items"]} == {None}
        assert {item["probability"] for item in answer["items"]} == {None}
        assert len(running.engine.requests) == num_decodes


@pytest.mark.parametrize(("k", "num_returned", "is_short"), [(1, 1, False), (40, 40, False), (200, 40, True)])
async def test_exactly_min_k_items_come_back(start_app, k, num_returned, is_short):
    async with start_app() as running:
        answer = await ask(running, history=["item-5"], k=k)
        assert len({item["item_id"] for item in answer["items"]}) == num_returned
        assert answer["short"] is is_short


async def test_items_that_share_a_sid_follow_the_tie_break(start_app):
    async with start_app() as running:
        answer = await ask(running, history=["item-0"], k=2)
        # item-1 (popularity 7) and item-0 (popularity 0) share <a_0><b_0><c_0>.
        assert [item["item_id"] for item in answer["items"]] == ["item-1", "item-0"]
        assert answer["items"][0]["logprob"] == answer["items"][1]["logprob"]


async def test_narrow_beams_are_widened_to_reach_k_items(start_app):
    async with start_app() as running:
        answer = await ask(running, history=["item-9"], k=30, beam_width=2)
        assert [item["source"] for item in answer["items"]] == ["model"] * 30


async def test_what_the_widest_beam_does_not_reach_comes_from_siblings_then_popular(start_app, small_bundle):
    async with start_app(max_beam_width=2, default_beam_width=2) as running:
        answer = await ask(running, history=["item-9"], k=30)
        sources = [item["source"] for item in answer["items"]]
        assert sources == sorted(sources, key=["model", "sibling", "popular"].index)
        assert sources.count("model") == 2
        assert sources.count("popular") == 14  # 16 items start with a_0: 2 decoded, 14 siblings
        for item in answer["items"]:
            assert (item["logprob"] is None) == (item["source"] != "model")
        siblings = [item for item in answer["items"] if item["source"] == "sibling"]
        assert all(item["semantic_id"].startswith("<a_0>") for item in siblings)
        assert siblings[0]["semantic_id"].startswith("<a_0><b_2>")  # longest shared prefix first
        popular = [item["item_id"] for item in answer["items"] if item["source"] == "popular"]
        order = small_bundle.items["item_id"].gather(small_bundle.popular_rows).to_list()
        assert popular == sorted(popular, key=order.index)


async def test_excluded_items_never_come_back_and_all_others_do(start_app):
    excluded = [f"item-{n}" for n in range(0, 40, 3)]
    async with start_app() as running:
        answer = await ask(running, history=["item-9"], k=200, exclude_items=excluded)
        returned = {item["item_id"] for item in answer["items"]}
        assert returned == {f"item-{n}" for n in range(40)} - set(excluded)
        assert answer["short"]
        rows = running.engine.requests[-1].exclude_rows
        assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()


async def test_exclude_seen_leaves_out_the_whole_history(start_app):
    history = [f"item-{n}" for n in range(10)]  # longer than what the model reads
    async with start_app() as running:
        answer = await ask(running, history=history, k=30, exclude_seen=True)
        assert not {item["item_id"] for item in answer["items"]} & set(history)
        assert len(answer["items"]) == 30


async def test_everything_excluded_is_an_empty_short_answer(start_app):
    async with start_app() as running:
        answer = await ask(running, history=["item-1"], exclude_items=[f"item-{n}" for n in range(ALL)])
        assert answer["items"] == [] and answer["short"]


async def test_history_is_sorted_by_timestamp(start_app):
    early, late = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00+01:00"
    history = [{"item_id": "item-9", "timestamp": late}, {"item_id": "item-20", "timestamp": early}]
    async with start_app() as running:
        answer = await ask(running, history=history, k=1)
        assert answer["items"][0]["item_id"] == "item-9"


async def test_default_width_is_at_least_k_and_bounded(start_app):
    async with start_app(default_beam_width=8, max_beam_width=32) as running:
        for k, width in ((5, 8), (20, 20), (40, 32)):
            answer = await ask(running, history=["item-9"], k=k)
            assert running.engine.requests[-1].beam_width == width
            assert len(answer["items"]) == k


async def test_same_request_same_answer(start_app):
    async with start_app() as running:
        first, second = [await ask(running, history=["item-4", "item-30"], k=12) for _ in range(2)]
        assert first["items"] == second["items"]
        assert first["recommendation_id"] != second["recommendation_id"]


FILTERS = [
    ({"colour": "red"}, lambda n: n % 4 == 0),
    ({"colour": {"in": ["blue", "white"]}, "popularity": {"gte": 20}}, lambda n: n % 2 and 7 * n % 40 >= 20),
    (
        {"or": [{"item_id": "item-3"}, {"not": {"popularity": {"lt": 38}}}]},
        lambda n: n == 3 or 7 * n % 40 >= 38,
    ),
    ({"title": {"gt": "R", "lt": "S"}}, lambda n: n % 4 == 0),
    ({"colour": {"exists": False}}, lambda n: False),
    ({"colour": {"exists": True}}, lambda n: True),
]


@pytest.mark.parametrize(("condition", "is_allowed"), FILTERS)
@pytest.mark.parametrize("settings", [{}, {"max_beam_width": 2, "default_beam_width": 2}])
@pytest.mark.parametrize("history", [["item-9", "item-2"], []])
async def test_a_filter_holds_for_every_item_whatever_its_source(
    start_app, condition, is_allowed, settings, history
):
    allowed = {f"item-{n}" for n in range(ALL) if is_allowed(n)} - {"item-8", "item-3"}
    async with start_app(**settings) as running:
        for k in (1, 5, 200):
            answer = await ask(
                running, history=history, k=k, filter=condition, exclude_items=["item-8", "item-3"]
            )
            returned = [item["item_id"] for item in answer["items"]]
            assert len(set(returned)) == len(returned) == min(k, len(allowed))
            assert set(returned) <= allowed
            assert answer["short"] is (k > len(allowed))
            if history and not settings:
                assert {item["source"] for item in answer["items"]} <= {"model"}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"color": "red"}, "filter.color: no attribute 'color' to filter by; there are colour, item_id, pop"),
        ({"colour": 3}, "filter.colour.eq: this attribute holds texts, got 3"),
        ({"colour": {"like": "r"}}, "filter.colour.like: no operator 'like'; there are eq, in, gt"),
        ({"popularity": {"in": []}}, "filter.popularity.in must be a list of at least one value"),
        ({"and": [{"colour": "red"}, {"or": {}}]}, r"filter.and\[1\].or must be a list"),
        ({}, "filter must be a JSON object with at least one entry"),
    ],
)
async def test_a_filter_that_cannot_be_understood_is_refused_with_the_place(start_app, condition, message):
    async with start_app() as running:
        answer = await ask(running, 422, history=["item-9"], filter=condition)
        assert answer["error_type"] == "bad_filter"
        assert re.search(message, answer["error"])
        info = (await running.client.get("/info")).json()
        assert info["filter_attributes"] == {
            "item_id": "texts",
            "title": "texts",
            "popularity": "numbers",
            "colour": "texts",
        }


async def test_fields_say_what_an_item_carries(start_app):
    async with start_app() as running:
        asked = {"history": ["item-9"], "k": 2}
        full = (await ask(running, **asked))["items"][0]
        always = {"item_id", "rank", "source"}
        assert full.keys() == always | {"title", "metadata", "semantic_id", "logprob", "probability"} | (
            full.keys() & {"explanation"}
        )
        assert [item.keys() for item in (await ask(running, **asked, fields=[]))["items"]] == [always] * 2
        few = (await ask(running, **asked, fields=["title", "logprob"]))["items"][0]
        assert few == {name: full[name] for name in (*always, "title", "logprob")}
        explained = (await ask(running, **asked, fields=["title"], explain=True))["items"][0]
        assert explained.keys() == always | {"title", "explanation"}
        error = (await ask(running, 422, **asked, fields=["price"]))["error"]
        assert "fields" in error and "title" in error
        lines = await running.client.post(
            "/recommend/batch", json={"requests": [{**asked, "fields": ["semantic_id"]}]}
        )
        assert lines.json()["response"]["items"][0].keys() == always | {"semantic_id"}


async def test_answers_are_repeatable_and_rotate_by_seed(start_app):
    async with start_app() as running:

        async def ids(**options):
            items = (await ask(running, history=["item-9"], k=8, beam_width=40, **options))["items"]
            assert all(item["source"] == "model" for item in items)
            assert [item["rank"] for item in items] == list(range(1, 9))
            return [item["item_id"] for item in items]

        plain = await ids()
        assert await ids() == plain
        monday = await ids(rotation={"seed": "monday", "strength": 1})
        assert await ids(rotation={"seed": "monday", "strength": 1}) == monday
        weeks = {tuple(await ids(rotation={"seed": f"day {n}", "strength": 1})) for n in range(7)}
        assert len(weeks) == 7 and len(set(monday)) == 8
        ties = await ids(rotation={"seed": "monday", "strength": 1e-9})
        assert ties != plain and ties[:4] == plain[:4]  # the fake model gives some items the same score
        allowed = {item for week in weeks for item in week}
        assert allowed > set(plain)  # also items that the best eight leave out
        kept = await ids(rotation={"seed": "monday", "strength": 1}, exclude_items=monday[:1])
        assert kept[:7] == monday[1:]  # nobody else's place depends on an item that goes
        await ask(running, 422, history=["item-9"], rotation={"seed": ""})
        await ask(running, 422, history=["item-9"], rotation={"seed": "monday", "strength": True})


def test_rotation_draws_with_the_models_probabilities():
    scores = np.log([0.6, 0.3, 0.1])
    names = ["a", "b", "c"]
    first = [np.argmax(scores + Rotation(f"seed {n}", 1.0).noise(names)) for n in range(4000)]
    assert np.bincount(first) / 4000 == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    wide = [np.argmax(scores + Rotation(f"seed {n}", 0.1).noise(names)) for n in range(1000)]
    assert np.mean(np.array(wide) == 0) > 0.99
