"""Filters as callers write them: JSON, checked against the catalogue's attributes, in one canonical form.

    {"colour": "red"}                                     the attribute equals the value
    {"colour": {"in": ["red", "blue"]}}                   it equals one of the values
    {"price": {"gte": 10, "lt": 50}}                      it lies in the range (gt, gte, lt, lte)
    {"price": {"exists": false}}                          the item has no such attribute
    {"colour": "red", "price": {"lt": 50}}                all of them hold
    {"and": [...]}, {"or": [...]}, {"not": {...}}         of filters

A list attribute equals a value if it contains it. Texts are ordered by code points, so ranges over ISO
dates work. An item without the attribute fulfils no comparison, and so does fulfil its `not`.
Equal filters have equal canonical forms, which name them in caches; a canonical form is a filter again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from service.errors import BadFilter

MAX_DEPTH = 8
MAX_CONDITIONS = 100
MAX_VALUES = 10_000
MAX_TEXT = 1024
MAX_NAMES_SHOWN = 40
RANGES: dict[str, Callable[[pl.Expr, Any], pl.Expr]] = {
    "gt": pl.Expr.gt,
    "gte": pl.Expr.ge,
    "lt": pl.Expr.lt,
    "lte": pl.Expr.le,
}
OPERATORS = ("eq", "in", *RANGES, "exists")
JUNCTIONS = ("and", "or", "not")
Schema = Mapping[str, pl.DataType]
Canonical = dict[str, Any]  # one entry: a junction, or an attribute with one operator


@dataclass(frozen=True)
class Filter:
    """A checked filter.

    Attributes:
        canonical: its canonical JSON.
        predicate: true for the items it allows, never null.
    """

    canonical: str
    predicate: pl.Expr


def compile_filter(raw: Any, schema: Schema) -> Filter:
    """Check a filter and bring it into its canonical form.

    Args:
        raw: parsed JSON.
        schema: attribute -> type, see service/bundle/attributes.py.

    Raises:
        BadFilter: it is malformed or too large, names an unknown attribute or operator, or compares
            with a value of the wrong type; the message says where.
    """
    value = _Checker(schema).filter(raw, "filter", 1)
    return Filter(_text(value), _predicate(value, schema))


class _Checker:
    """Walks one filter, counts what it costs, and returns it in canonical form."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._num_conditions = 0
        self._num_values = 0

    def filter(self, raw: Any, place: str, depth: int) -> Canonical:
        if depth > MAX_DEPTH:
            raise BadFilter(f"{place} is nested deeper than {MAX_DEPTH} levels")
        if not isinstance(raw, dict) or not raw:
            raise BadFilter(
                f'{place} must be a JSON object with at least one entry, such as {{"colour": "red"}}'
            )
        parts: list[Canonical] = []
        for name, inner in raw.items():
            at = f"{place}.{name}"
            if name == "not":
                parts.append(_negation(self.filter(inner, at, depth + 1)))
            elif name in JUNCTIONS:
                if not isinstance(inner, list) or not inner:
                    raise BadFilter(f"{at} must be a list of at least one filter")
                members = [self.filter(one, f"{at}[{n}]", depth + 1) for n, one in enumerate(inner)]
                parts.append(_junction(name, members))
            else:
                parts += self._conditions(name, inner, at)
        return _junction("and", parts)

    def _conditions(self, name: str, raw: Any, place: str) -> list[Canonical]:
        if (kind := self._schema.get(name)) is None:
            raise BadFilter(f"{place}: no attribute {name!r} to filter by; there are {_names(self._schema)}")
        operations = raw if isinstance(raw, dict) else {"eq": raw}
        if not operations:
            raise BadFilter(f"{place} is empty; give it one of {', '.join(OPERATORS)}")
        return [self._condition(name, kind, op, value, f"{place}.{op}") for op, value in operations.items()]

    def _condition(self, name: str, kind: pl.DataType, op: str, value: Any, place: str) -> Canonical:
        self._num_conditions += 1
        if self._num_conditions > MAX_CONDITIONS:
            raise BadFilter(f"{place}: more than {MAX_CONDITIONS} conditions in one filter")
        if op == "exists":
            if not isinstance(value, bool):
                raise BadFilter(f"{place} must be true or false, got {_shown(value)}")
            return {name: {op: value}}
        if op in RANGES:
            if isinstance(kind, pl.List) or kind == pl.Boolean:
                raise BadFilter(
                    f"{place}: {name!r} holds {_type_name(kind)}, which have no order; use eq or in"
                )
            return {name: {op: self._value(value, kind, place)}}
        if op not in ("eq", "in"):
            raise BadFilter(f"{place}: no operator {op!r}; there are {', '.join(OPERATORS)}")
        if op == "in" and not (isinstance(value, list) and value):
            raise BadFilter(f"{place} must be a list of at least one value")
        values = sorted({self._value(one, kind, place) for one in (value if op == "in" else [value])})
        return {name: {"in": values} if len(values) > 1 else {"eq": values[0]}}

    def _value(self, value: Any, kind: pl.DataType, place: str) -> Any:
        """A value to compare with, of the attribute's type."""
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise BadFilter(f"{place}: more than {MAX_VALUES} values in one filter")
        inner = kind.inner if isinstance(kind, pl.List) else kind
        if value is None:
            raise BadFilter(f'{place} is null; to ask for items without it write {{"exists": false}}')
        if inner == pl.Boolean:
            fits = isinstance(value, bool)
        elif inner == pl.String:
            fits = isinstance(value, str)
            if fits and len(value) > MAX_TEXT:
                raise BadFilter(f"{place} is longer than {MAX_TEXT} characters")
            if fits and any("\ud800" <= character <= "\udfff" for character in value):
                raise BadFilter(f"{place} is no text: it holds half a character (a lone surrogate)")
        else:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            if fits and not (math.isfinite(value) and abs(value) < 2**63):
                raise BadFilter(f"{place} is not a number of 64 bits")
        if not fits:
            raise BadFilter(f"{place}: this attribute holds {_type_name(kind)}, got {_shown(value)}")
        is_whole = isinstance(value, float) and value.is_integer()
        return int(value) if is_whole else value  # 5 and 5.0 are the same filter


def _junction(name: str, parts: list[Canonical]) -> Canonical:
    """All (and) or one (or) of some parts: flattened, each once, sorted."""
    members: dict[str, Canonical] = {}
    for part in parts:
        for one in part.get(name, (part,)):
            members[_text(one)] = one
    ordered = [members[text] for text in sorted(members)]
    return ordered[0] if len(ordered) == 1 else {name: ordered}


def _negation(part: Canonical) -> Canonical:
    return part.get("not", {"not": part})


def _predicate(value: Canonical, schema: Schema) -> pl.Expr:
    """What a canonical filter means."""
    ((name, inner),) = value.items()
    if name == "not":
        return ~_predicate(inner, schema)
    if name == "and":
        return pl.all_horizontal([_predicate(one, schema) for one in inner])
    if name == "or":
        return pl.any_horizontal([_predicate(one, schema) for one in inner])
    ((op, operand),) = inner.items()
    column = pl.col(name)
    if op == "exists":
        return column.is_not_null() if operand else column.is_null()
    if op in RANGES:
        return RANGES[op](column, pl.lit(operand)).fill_null(False)
    return _is_one_of(column, schema[name], operand if op == "in" else [operand]).fill_null(False)


def _is_one_of(column: pl.Expr, kind: pl.DataType, values: list[Any]) -> pl.Expr:
    inner = kind.inner if isinstance(kind, pl.List) else kind
    if any(isinstance(value, float) for value in values):
        inner = pl.Float64()  # a fraction in a column of whole numbers
    wanted = pl.lit(pl.Series([values], dtype=pl.List(inner)))
    if isinstance(kind, pl.List):
        return column.list.eval(pl.element().cast(inner).is_in(wanted)).list.any()
    return column.cast(inner).is_in(wanted)


def _text(value: Canonical) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def filter_schema(schema: Schema, reference: str) -> dict[str, Any]:
    """JSON Schema of the filters that `compile_filter` accepts (but for their size).

    Args:
        schema: attribute -> type.
        reference: where the caller puts the result, for the filters inside filters.
    """
    inner = {"$ref": reference}
    several = {"type": "array", "items": inner, "minItems": 1, "maxItems": 100}
    properties: dict[str, Any] = {"and": several, "or": several, "not": inner}
    for name, kind in schema.items():
        value = _value_schema(kind)
        operations = {"eq": value, "in": {"type": "array", "items": value, "minItems": 1, "maxItems": 1000}}
        if not isinstance(kind, pl.List) and kind != pl.Boolean:
            operations |= dict.fromkeys(RANGES, value)
        operations["exists"] = {"type": "boolean"}
        condition = {"type": "object", "properties": operations}
        properties[name] = {"anyOf": [value, condition | {"minProperties": 1, "additionalProperties": False}]}
    return {
        "type": "object",
        "description": "What items must be like, by the attributes of this catalogue.",
        "properties": properties,
        "minProperties": 1,
        "additionalProperties": False,
    }


def _value_schema(kind: pl.DataType) -> dict[str, Any]:
    inner = kind.inner if isinstance(kind, pl.List) else kind
    if inner == pl.String:
        return {"type": "string", "maxLength": MAX_TEXT}
    if inner == pl.Boolean:
        return {"type": "boolean"}
    return {"type": "number", "minimum": -(2**62), "maximum": 2**62}


def attribute_kinds(schema: Schema) -> dict[str, str]:
    """What every attribute holds, in words: numbers, texts, booleans, lists of texts..."""
    return {name: _type_name(kind) for name, kind in schema.items()}


def _names(schema: Schema) -> str:
    names = sorted(schema)
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + more


def _type_name(kind: pl.DataType) -> str:
    if isinstance(kind, pl.List):
        return f"lists of {_type_name(kind.inner)}"  # type: ignore[arg-type]
    if kind == pl.Boolean:
        return "booleans"
    return "texts" if kind == pl.String else "numbers"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
