"""Filter expressions against their meaning spelled out in Python, and their prefix sums against counting."""

from __future__ import annotations

import json
import operator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.attributes import attributes_of, load_attributes, save_attributes
from service.decoding.filter_expression import compile_filter
from service.decoding.filters import EVERYTHING, AllowedRows, FilterSums
from service.errors import BadFilter, BundleError

METADATA: list[dict[str, Any]] = [
    {"colour": "red", "price": 3, "tags": ["new", "sale"], "in_stock": True, "brand": {"name": "acme"}},
    {"colour": "blue", "price": 4.5, "tags": ["sale"], "in_stock": False},
    {"colour": "", "price": None, "tags": [], "brand": {"name": "zeta", "since": 1999}},
    {"colour": "red", "price": -1, "tags": "old", "in_stock": True, "mixed": 1, "title": "x"},
    {"mixed": "one", "deep": {"a": {"b": {"c": {"d": 1}}}}},
    {},
]
ITEMS = pl.DataFrame(
    {
        "item_id": [f"i{n}" for n in range(6)],
        "title": list("abcdef"),
        "metadata": [json.dumps(one) for one in METADATA],
        "popularity": [5, 4, 3, 2, 1, 0],
    }
)
ATTRIBUTES = attributes_of(ITEMS)
ROWS: list[dict[str, Any]] = ATTRIBUTES.to_dicts()
RANGES = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


def test_attributes_are_typed_columns_of_the_items() -> None:
    assert dict(ATTRIBUTES.schema) == {
        "item_id": pl.String, "title": pl.String, "popularity": pl.Int64, "brand.name": pl.String,
        "brand.since": pl.Int64, "colour": pl.String, "in_stock": pl.Boolean, "price": pl.Float64,
        "tags": pl.List(pl.String), "metadata.title": pl.String,
    }  # fmt: skip
    assert ATTRIBUTES["colour"].to_list() == ["red", "blue", None, "red", None, None]
    assert ATTRIBUTES["tags"].to_list() == [["new", "sale"], ["sale"], None, ["old"], None, None]


def test_attributes_are_kept_in_a_file_or_derived(tmp_path: Path) -> None:
    ITEMS.write_parquet(tmp_path / "items.parquet")
    assert load_attributes(tmp_path).equals(ATTRIBUTES)
    save_attributes(ATTRIBUTES, tmp_path / "attributes.arrow")
    (tmp_path / "items.parquet").unlink()
    assert load_attributes(tmp_path).equals(ATTRIBUTES)
    (tmp_path / "attributes.arrow").write_bytes(b"no arrow")
    with pytest.raises(BundleError, match="cannot be read"):
        load_attributes(tmp_path)


def meaning(condition: dict[str, Any], row: dict[str, Any]) -> bool:
    """What a filter says about one item."""
    return all(_entry(name, inner, row) for name, inner in condition.items())


def _entry(name: str, inner: Any, row: dict[str, Any]) -> bool:
    if name == "not":
        return not meaning(inner, row)
    if name in ("and", "or"):
        return (all if name == "and" else any)(meaning(one, row) for one in inner)
    operations = inner if isinstance(inner, dict) else {"eq": inner}
    return all(_holds(row[name], op, operand) for op, operand in operations.items())


def _holds(value: Any, op: str, operand: Any) -> bool:
    if op == "exists":
        return (value is not None) is operand
    if value is None:
        return False
    if op in RANGES:
        return RANGES[op](value, operand)
    wanted = operand if op == "in" else [operand]
    return any(one in wanted for one in (value if isinstance(value, list) else [value]))


numbers = st.sampled_from([-1, 0, 2, 3, 3.0, 4.5, 5, 1999])
texts = st.sampled_from(["red", "blue", "acme", "sale", "old", "a", "i3", "\u00e9", ""])
VALUES = {
    "price": numbers, "popularity": numbers, "brand.since": numbers, "colour": texts, "item_id": texts,
    "title": texts, "brand.name": texts, "tags": texts, "in_stock": st.booleans(),
}  # fmt: skip


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(VALUES)))
    values = VALUES[name]
    ordered = [] if name in ("tags", "in_stock") else sorted(RANGES)
    op = draw(st.sampled_from(["plain", "eq", "in", "exists", *ordered]))
    if op == "plain":
        return {name: draw(values)}
    operand = {"in": st.lists(values, min_size=1, max_size=4), "exists": st.booleans()}.get(op, values)
    return {name: {op: draw(operand)}}


def _merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: inner for part in parts for name, inner in part.items()}


filters = st.recursive(
    conditions(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"or": parts}),
        inner.map(lambda part: {"not": part}),
        st.lists(inner, min_size=1, max_size=3).map(_merged),
    ),
    max_leaves=6,
)


@given(filters)
@settings(max_examples=150, deadline=None)
def test_a_filter_means_what_it_says_and_its_canonical_form_means_the_same(condition: dict[str, Any]) -> None:
    try:
        compiled = compile_filter(condition, ATTRIBUTES.schema)
    except BadFilter as error:
        assert "nested deeper" in str(error)
        return
    expected = [meaning(condition, row) for row in ROWS]
    assert ATTRIBUTES.select(compiled.predicate.alias("x"))["x"].to_list() == expected
    again = compile_filter(json.loads(compiled.canonical), ATTRIBUTES.schema)
    assert again.canonical == compiled.canonical
    assert [meaning(json.loads(compiled.canonical), row) for row in ROWS] == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"colour": "red", "price": 3}, {"and": [{"price": 3.0}, {"colour": {"in": ["red", "red"]}}]}),
        ({"not": {"not": {"or": [{"price": 1}, {"or": [{"price": 2}, {"price": 1}]}]}}},
         {"or": [{"price": 2}, {"price": 1}]}),
        ({"price": {"gt": 1, "lt": 2}}, {"price": {"lt": 2.0, "gt": 1}}),
    ],
)  # fmt: skip
def test_equal_filters_have_one_canonical_form(one: dict[str, Any], other: dict[str, Any]) -> None:
    schema = ATTRIBUTES.schema
    assert compile_filter(one, schema).canonical == compile_filter(other, schema).canonical


def nested(depth: int) -> dict[str, Any]:
    return {"price": 1} if depth == 1 else {"and": [nested(depth - 1), {"price": depth}]}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ([], "filter must be a JSON object"),
        ({"mixed": 1}, "no attribute 'mixed' to filter by; there are brand.name, brand.since, colour"),
        ({"price": {}}, "filter.price is empty; give it one of eq, in"),
        ({"price": "3"}, 'filter.price.eq: this attribute holds numbers, got "3"'),
        ({"price": True}, "holds numbers, got true"),
        ({"price": {"lt": float("nan")}}, "filter.price.lt is not a number of 64 bits"),
        ({"popularity": 2**70}, "not a number of 64 bits"),
        ({"colour": None}, 'filter.colour.eq is null; .*{"exists": false}'),
        ({"colour": ["red"]}, "holds texts, got"),
        ({"colour": "\ud800"}, "half a character"),
        ({"colour": "x" * 2000}, "longer than 1024"),
        ({"tags": {"gt": "a"}}, "lists of texts, which have no order"),
        ({"in_stock": 1}, "holds booleans, got 1"),
        ({"in_stock": {"exists": 1}}, "must be true or false"),
        ({"not": {"or": [{"price": 1}, {"nope": 2}]}}, r"filter\.not\.or\[1\]\.nope: no attribute"),
        ({"and": {"price": 1}}, "filter.and must be a list"),
        (nested(9), "nested deeper than 8"),
        ({"or": [{"price": n} for n in range(101)]}, "more than 100 conditions"),
        ({"price": {"in": list(range(10_001))}}, "more than 10000 values"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_the_place(condition: Any, message: str) -> None:
    with pytest.raises(BadFilter, match=message):
        compile_filter(condition, ATTRIBUTES.schema)
    compile_filter(nested(8), ATTRIBUTES.schema)


NUM_ITEMS = 30


def multiples(name: str) -> np.ndarray:
    return np.arange(NUM_ITEMS) % int(name) == 0


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([EVERYTHING, "1", "2", "3", "5", "7"]), min_size=1, max_size=6),
            st.none() | st.sets(st.integers(0, NUM_ITEMS - 1)),
        ),
        max_size=8,
    ),
    st.sets(st.integers(0, NUM_ITEMS - 1)),
)
@settings(max_examples=100, deadline=None)
def test_sums_of_any_batch_are_right_and_stay_within_their_memory(capacity, batches, excluded) -> None:
    sums = FilterSums(NUM_ITEMS, multiples, max_bytes=4 * (NUM_ITEMS + 1) * capacity)
    visible = np.ones(NUM_ITEMS, dtype=bool)
    rows = np.array(sorted(excluded), dtype=np.int64)
    ends = torch.arange(NUM_ITEMS + 1)
    for names, hidden in batches:
        if hidden is not None:
            visible = ~np.isin(np.arange(NUM_ITEMS), list(hidden))
            sums.hide(np.array(sorted(hidden), dtype=np.int64))
        block, filter_of = sums.of(names)
        allowed = AllowedRows(NUM_ITEMS, [rows] * len(names), filter_sums=block, filter_of=filter_of)
        counts = allowed.before(ends.expand(len(names), -1))
        for request, name in enumerate(names):
            mask = visible & (multiples(name) if name else True)
            mask[rows] = False
            assert counts[request].tolist() == [0, *mask.cumsum().tolist()]
        assert sums.num_bytes <= 4 * (NUM_ITEMS + 1) * capacity
