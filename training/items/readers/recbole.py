"""Read RecBole's atomic files: `NAME.inter` and `NAME.item`, tab-separated, with typed headers.

A header names every column and its type: `item_id:token`, `title:token_seq`, `rating:float`,
`timestamp:float`. The parts of a `_seq` are separated by a space. The item column that holds the
title becomes the title, `description` the description, all else metadata: lists for `token_seq`,
numbers for `float`.

Without a time column the order of the file is the order of events.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from training.items.bad_rows import BadRows
from training.items.config import RecBoleConfig
from training.items.errors import DataError
from training.items.item_table import ItemTable
from training.items.splits import EVENT_SCHEMA
from training.items.text import clean_text
from training.items.text_files import numbered_lines

_TYPES = ("token", "token_seq", "float", "float_seq")
_TITLES = ("title", "movie_title", "item_name", "name", "item_title", "book_title")


@dataclass(frozen=True)
class Column:
    """One column of an atomic file."""

    name: str
    kind: str


def read(config: RecBoleConfig, bad_rows: BadRows) -> tuple[ItemTable, pl.DataFrame]:
    """Read both files.

    Returns:
        The items, and events with the columns user_id, item (index), time.

    Raises:
        DataError: a file or a row cannot be used; see `BadRows`.
    """
    items = read_items(_find(config, "item"), config, bad_rows)
    return items, read_interactions(_find(config, "inter"), config, items, bad_rows)


def _find(config: RecBoleConfig, suffix: str) -> Path:
    path = config.folder / f"{config.name}.{suffix}"
    return (
        path
        if path.exists() or not path.with_name(path.name + ".gz").exists()
        else path.with_name(path.name + ".gz")
    )


def read_items(path: Path, config: RecBoleConfig, bad_rows: BadRows) -> ItemTable:
    """Read a `.item` file."""
    items = ItemTable()
    rows = _rows(path, bad_rows)
    columns = next(rows)[1]
    title_at = _title_column(path, columns, config)
    id_at = _position(path, columns, config.item_column)
    for line, fields in rows:
        item_id, title = fields[id_at].strip(), clean_text(fields[title_at])
        if not item_id:
            bad_rows.add(path, line, "the item id is empty", "give every item an id")
        elif item_id in items.index_of:
            wrong = f"item {item_id!r} comes a second time"
            bad_rows.add(path, line, wrong, "keep one line per item", "item twice")
        else:
            if not title:
                wrong = f"item {item_id!r} has no title"
                bad_rows.add(path, line, wrong, "give every item a title", "item without text")
            metadata = {
                column.name: value
                for at, column in enumerate(columns)
                if at not in (id_at, title_at)
                and column.name != "description"
                and (value := _value(fields[at], column.kind)) is not None
            }
            description = next(
                (clean_text(fields[at]) for at, column in enumerate(columns) if column.name == "description"),
                "",
            )
            # Not lost for want of a title: skipping a real item would break the sequences.
            items.add(item_id, title or item_id, description, metadata)
    if not len(items):
        raise DataError(f"{path} holds no usable item; check that it is the file of items")
    return items


def read_interactions(path: Path, config: RecBoleConfig, items: ItemTable, bad_rows: BadRows) -> pl.DataFrame:
    """Read a `.inter` file; ratings below `config.min_rating` are left out."""
    rows = _rows(path, bad_rows)
    columns = next(rows)[1]
    names = [column.name for column in columns]
    user_at, item_at = (_position(path, columns, name) for name in (config.user_column, config.item_column))
    time_at = names.index(config.time_column) if config.time_column in names else None
    rating_at = None if config.min_rating is None else _position(path, columns, config.rating_column)
    users: list[str] = []
    indices: list[int] = []
    times: list[float] = []
    for line, fields in rows:
        index = items.index_of.get(fields[item_at].strip())
        time = float(line) if time_at is None else _number(fields[time_at])
        rating = None if rating_at is None else _number(fields[rating_at])
        if index is None:
            wrong = f"item {fields[item_at]!r} is not among the items"
            bad_rows.add(path, line, wrong, "add it to the .item file", "unknown item")
        elif time is None:
            wrong = f"{config.time_column} {fields[time_at or 0]!r} is no number"
            bad_rows.add(path, line, wrong, "write seconds", "timestamp")
        elif rating_at is not None and rating is None:
            wrong = f"{config.rating_column} {fields[rating_at]!r} is no number"
            bad_rows.add(path, line, wrong, "write a number", "rating")
        elif rating is None or config.min_rating is None or rating >= config.min_rating:
            users.append(fields[user_at].strip())
            indices.append(index)
            times.append(time)
    if not users:
        raise DataError(f"{path} holds no usable interaction; check the file and items.recbole.min_rating")
    return pl.DataFrame({"user_id": users, "item": indices, "time": times}, schema=EVENT_SCHEMA)


def _rows(path: Path, bad_rows: BadRows) -> Iterator[tuple[int, Any]]:
    """The header as columns first, then (line number, fields) of every row that fits it."""
    columns: list[Column] = []
    for line, content in numbered_lines(path):
        fields = content.split("\t")
        if not columns:
            columns = _header(path, fields)
            yield line, columns
        elif len(fields) != len(columns):
            wrong = f"{len(fields)} fields where the header has {len(columns)}"
            bad_rows.add(path, line, wrong, "separate fields by one tab", "wrong number of fields")
        else:
            yield line, fields
    if not columns:
        raise DataError(f"{path} is empty; an atomic file begins with a header such as item_id:token")


def _header(path: Path, fields: list[str]) -> list[Column]:
    columns = []
    for field in fields:
        name, colon, kind = field.strip().rpartition(":")
        if not colon or kind not in _TYPES:
            raise DataError(
                f"{path}:1: the header field {field!r} has no type; write name:type with one of "
                f"{', '.join(_TYPES)}, separated by tabs"
            )
        columns.append(Column(name, kind))
    return columns


def _position(path: Path, columns: list[Column], name: str) -> int:
    names = [column.name for column in columns]
    if name not in names:
        raise DataError(
            f"{path}:1: there is no column {name!r} (there are {', '.join(names)}); name it in items.recbole"
        )
    return names.index(name)


def _title_column(path: Path, columns: list[Column], config: RecBoleConfig) -> int:
    if config.title_column:
        return _position(path, columns, config.title_column)
    names = [column.name for column in columns]
    for name in _TITLES:
        if name in names:
            return names.index(name)
    raise DataError(
        f"{path}:1: none of the columns {', '.join(names)} looks like a title; set items.recbole.title_column"
    )


def _value(text: str, kind: str) -> Any:
    """A field as JSON knows it; None if it is empty."""
    text = text.strip()
    if not text:
        return None
    if kind == "token_seq":
        return text.split()
    if kind == "float":
        return _number(text)
    if kind == "float_seq":
        return [number for part in text.split() if (number := _number(part)) is not None]
    return text


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
