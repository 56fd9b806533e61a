"""What changed items can be filtered by, in the columns of the bundle.

One item must not spoil an attribute for all: a value of another kind than the bundle's items have is
missing for that item. Only what loses nothing widens a column: whole numbers to numbers, single values
to lists. Attributes that no item of the bundle has get the kind that most of their values have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from service.bundle.attributes import MAX_ATTRIBUTES, OWN_COLUMNS, flatten, spelled
from service.catalogue.records import ItemRecord

_KINDS: dict[type, type[pl.DataType]] = {
    bool: pl.Boolean,
    str: pl.String,
    int: pl.Int64,
    float: pl.Float64,
}


def with_changed(attributes: pl.DataFrame, records: Sequence[ItemRecord]) -> pl.DataFrame:
    """The bundle's columns, longer by one row per changed item.

    Args:
        attributes: from `service.bundle.attributes`. N rows.
        records: n items.

    Returns:
        N + n rows.
    """
    found: dict[str, list[Any]] = {}
    for row, record in enumerate(records):
        for name, value in flatten(record.metadata):
            if value is not None and value != "" and value != []:
                column = spelled(name)
                if column not in found:  # no setdefault: it would make a list for every value
                    found[column] = [None] * len(records)
                found[column][row] = value
    for name in sorted(found.keys() - set(attributes.columns)):
        if attributes.width < MAX_ATTRIBUTES and (kind := _usual_kind(found[name])) is not None:
            attributes = attributes.with_columns(pl.lit(None, dtype=kind).alias(name))
    wide = attributes.with_columns(
        _widened(pl.col(name), kind, attributes.schema[name])
        for name, values in found.items()
        if name in attributes.columns and (kind := _wide_kind(attributes.schema[name], values))
    )
    columns: dict[str, list[Any]] = {
        name: [getattr(record, name) for record in records] for name in OWN_COLUMNS
    }
    for name, kind in wide.schema.items():
        if name not in OWN_COLUMNS:
            values = found.get(name, [None] * len(records))
            columns[name] = [_fitted(value, kind) for value in values]
    return pl.concat([wide, pl.DataFrame(columns, schema=wide.schema)])


def _usual_kind(values: list[Any]) -> pl.DataType | type[pl.DataType] | None:
    """The kind of most of the values; lists of it if any value is a list."""
    given = [value for value in values if value is not None]
    flat = [one for value in given for one in (value if isinstance(value, list) else (value,))]
    kinds = Counter(_KINDS[type(one)] for one in flat if type(one) in _KINDS)
    if not kinds:
        return None
    kind = max(sorted(kinds, key=str), key=lambda each: kinds[each])
    if kind == pl.Int64 and kinds[pl.Float64]:
        kind = pl.Float64
    return pl.List(kind) if any(isinstance(value, list) for value in given) else kind


def _wide_kind(kind: pl.DataType, values: list[Any]) -> Any:
    """What the column must become for the values to fit; None if it may stay."""
    inner = kind.inner if isinstance(kind, pl.List) else kind
    flat = [one for value in values for one in (value if isinstance(value, list) else (value,))]
    wide = pl.Float64 if inner == pl.Int64 and any(isinstance(one, float) for one in flat) else inner
    is_list = isinstance(kind, pl.List) or any(
        isinstance(value, list) and _fitted(value, pl.List(wide)) is not None for value in values
    )
    becomes = pl.List(wide) if is_list else wide
    return None if becomes == kind else becomes


def _widened(column: pl.Expr, kind: Any, before: pl.DataType) -> pl.Expr:
    if isinstance(kind, pl.List) and not isinstance(before, pl.List):
        one = pl.concat_list(column.cast(kind.inner))
        return pl.when(column.is_null()).then(None).otherwise(one).alias(column.meta.output_name())
    return column.cast(kind)


def _fitted(value: Any, kind: Any) -> Any:
    """The value as the column holds it; None if it is of another kind."""
    if isinstance(kind, pl.List):
        values = [_fitted(one, kind.inner) for one in (value if isinstance(value, list) else [value])]
        return None if any(one is None for one in values) else values
    if kind == pl.Float64:
        return float(value) if type(value) in (int, float) else None
    if kind == pl.Int64:
        return value if type(value) is int and -(2**63) <= value < 2**63 else None
    return value if _KINDS.get(type(value)) == kind else None
