"""What items can be filtered by: one typed column per attribute, derived from the items as they stand.

`item_id`, `title`, `popularity` and every key of the metadata become columns; a key of a nested object
is spelled with dots (`brand.name`), and a metadata key that is called like one of the three, or `and`,
`or`, `not`, is spelled `metadata.title`. Numbers become Int64 or Float64, booleans Boolean, texts
String, lists List of one of them; a single value beside lists counts as a list of one. Null, the empty
text and the empty list are missing. An attribute whose values are of several kinds cannot be compared
and gets no column.

The columns are kept as an Arrow file, so that several processes map the same pages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from service.bundle.layout import ATTRIBUTES_FILE, ITEMS_FILE
from service.errors import BundleError

OWN_COLUMNS = ("item_id", "title", "popularity")
RESERVED = (*OWN_COLUMNS, "and", "or", "not")
MAX_ATTRIBUTES = 256  # of metadata; rarer ones than the most frequent this many get no column
MAX_NESTING = 4
_INT64 = 2**63


def attributes_of(items: pl.DataFrame) -> pl.DataFrame:
    """Derive the columns.

    Args:
        items: columns item_id, title, metadata (a JSON object as text), popularity. N rows.

    Returns:
        N rows in the same order.

    Raises:
        BundleError: the metadata of an item is no JSON object.
    """
    found: dict[str, dict[int, Any]] = {}  # attribute -> row -> value
    for row, text in enumerate(items["metadata"].to_list()):
        try:
            metadata = json.loads(text) if text else {}
        except (ValueError, RecursionError) as error:
            raise BundleError(f"the metadata of item {items['item_id'][row]!r} is no JSON") from error
        if not isinstance(metadata, dict):
            raise BundleError(f"the metadata of item {items['item_id'][row]!r} is no JSON object")
        for name, value in flatten(metadata):
            if value is not None and value != "" and value != []:
                found.setdefault(name, {})[row] = value
    frequent = sorted(found, key=lambda name: (-len(found[name]), name))[:MAX_ATTRIBUTES]
    columns = {name: items[name] for name in OWN_COLUMNS}
    for name in sorted(frequent):
        column_name = spelled(name)
        if (column := _column(found[name], items.height)) is not None and column_name not in columns:
            columns[column_name] = column.alias(column_name)
    return pl.DataFrame(columns)


def save_attributes(attributes: pl.DataFrame, file: Path) -> None:
    """Write the columns for `load_attributes`."""
    attributes.write_ipc(file, compression="uncompressed")


def load_attributes(directory: Path) -> pl.DataFrame:
    """Memory-map the columns beside a trie; a bundle of before they were exported derives them now.

    Raises:
        BundleError: they cannot be read.
    """
    file = directory / ATTRIBUTES_FILE
    try:
        if not file.exists() and (directory / ITEMS_FILE).exists():
            columns = ["item_id", "title", "metadata", "popularity"]
            return attributes_of(pl.read_parquet(directory / ITEMS_FILE, columns=columns))
        return pl.scan_ipc(file).collect()  # maps an uncompressed file
    except (OSError, pl.exceptions.PolarsError) as error:
        raise BundleError(f"{file} cannot be read ({error}); export the bundle again") from error


def spelled(name: str) -> str:
    """The column of a metadata key."""
    return f"metadata.{name}" if name in RESERVED else name


def flatten(value: dict[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Keys and values of metadata, keys of nested objects with dots."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            if depth < MAX_NESTING:
                yield from flatten(inner, f"{prefix}{key}.", depth + 1)
        else:
            yield prefix + key, inner


def _column(values: dict[int, Any], num_items: int) -> pl.Series | None:
    """The values as one typed column, null where there is none; None if they are of several kinds."""
    is_list = any(isinstance(value, list) for value in values.values())
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    flat = [one for part in lists for one in part]
    if (kind := _kind(flat)) is None:
        return None
    rows = [row for row, part in zip(values, lists, strict=True) for _ in part]
    try:
        # One flat column, then one group per item: a Series of Python lists is built row by row, 10 x slower.
        table = pl.DataFrame({"row": rows, "value": pl.Series(flat, dtype=kind, strict=False)})
    except UnicodeEncodeError:  # half a character somewhere; no filter could name it
        return None
    if is_list:
        table = table.group_by("row", maintain_order=True).agg("value")
    everything = pl.DataFrame({"row": pl.arange(num_items, eager=True)})
    return everything.join(table, on="row", how="left", maintain_order="left")["value"]


def _kind(values: list[Any]) -> type[pl.DataType] | None:
    types = set(map(type, values))
    if types == {bool}:
        return pl.Boolean
    if types == {str}:
        return pl.String
    if types == {int} and all(-_INT64 <= value < _INT64 for value in values):
        return pl.Int64
    return pl.Float64 if types and types <= {int, float} else None
