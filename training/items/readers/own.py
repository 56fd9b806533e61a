"""Read `items.jsonl` and `interactions.csv`, the project's own layout.

items.jsonl, one JSON object per line:
    {"item_id": "tent-2", "title": "Two-person tent", "description": "...", "metadata": {"price": 129}}
item_id (text or whole number) and title are needed; a description may be text or a list of texts;
any other key is taken as metadata.

interactions.csv, with a header line:
    user_id,item_id,timestamp
    ann,tent-2,2024-05-01T10:00:00
A timestamp is a number (seconds, or any other unit used throughout) or ISO 8601 (UTC if it names
no zone). An optional column `event` can be filtered by items.own.events. Other columns are ignored.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from training.items.bad_rows import BadRows
from training.items.config import OwnConfig
from training.items.errors import DataError
from training.items.item_table import ItemTable
from training.items.splits import EVENT_SCHEMA
from training.items.text import clean_description, clean_text
from training.items.text_files import numbered_lines, open_text

_NEEDED = ("user_id", "item_id", "timestamp")


def read(config: OwnConfig, bad_rows: BadRows) -> tuple[ItemTable, pl.DataFrame]:
    """Read both files.

    Returns:
        The items, and events with the columns user_id, item (index), time.

    Raises:
        DataError: a file or a row cannot be used; see `BadRows`.
    """
    items = read_items(config.items, bad_rows)
    return items, read_interactions(config.interactions, items, bad_rows, events=config.events)


def read_items(path: Path, bad_rows: BadRows) -> ItemTable:
    """Read an items.jsonl."""
    items = ItemTable()
    for line, text in numbered_lines(path):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            bad_rows.add(path, line, f"not JSON ({error.msg})", "write one JSON object per line", "not JSON")
            continue
        if not isinstance(row, dict):
            bad_rows.add(path, line, "not a JSON object", 'write {"item_id": ..., "title": ...}')
            continue
        _add_item(items, row, path, line, bad_rows)
    if not len(items):
        raise DataError(f"{path} holds no usable item; check that it is the file of items")
    return items


def _add_item(items: ItemTable, row: dict, path: Path, line: int, bad_rows: BadRows) -> None:
    item_id, title = row.pop("item_id", None), row.pop("title", None)
    if isinstance(item_id, int) and not isinstance(item_id, bool):
        item_id = str(item_id)
    if not isinstance(item_id, str) or not item_id.strip():
        bad_rows.add(
            path, line, f"item_id is {item_id!r}", "give every item a text or a whole number", "item_id"
        )
        return
    item_id = item_id.strip()
    if not isinstance(title, str) or not clean_text(title):
        bad_rows.add(
            path, line, f"title of item {item_id!r} is {title!r}", "give every item a title", "title"
        )
        return
    if item_id in items.index_of:
        bad_rows.add(
            path, line, f"item {item_id!r} comes a second time", "keep one line per item", "item twice"
        )
        return
    description, metadata = row.pop("description", None), row.pop("metadata", None)
    if metadata is not None and not isinstance(metadata, dict):
        bad_rows.add(path, line, f"metadata of item {item_id!r} is no object", "write {...}", "metadata")
        return
    items.add(item_id, clean_text(title), clean_description(description), {**row, **(metadata or {})})


def read_interactions(
    path: Path, items: ItemTable, bad_rows: BadRows, *, events: Collection[str] = ()
) -> pl.DataFrame:
    """Read an interactions.csv. See the module docstring."""
    users: list[str] = []
    indices: list[int] = []
    times: list[float] = []
    with open_text(path) as file:
        reader = csv.reader(file)
        try:
            columns = _header(path, reader, wants_event=bool(events))
            for fields in reader:
                if not fields:
                    continue
                parsed = _parse(fields, columns, items, path, reader.line_num, bad_rows)
                if parsed is None or (events and fields[columns["event"]].strip() not in events):
                    continue
                users.append(parsed[0])
                indices.append(parsed[1])
                times.append(parsed[2])
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not CSV ({error}); check its quotes") from error
    if not users:
        raise DataError(f"{path} holds no usable interaction; check the file and items.own.events")
    return pl.DataFrame({"user_id": users, "item": indices, "time": times}, schema=EVENT_SCHEMA)


def _header(path: Path, reader, *, wants_event: bool) -> dict[str, int]:
    header = next(reader, None) or []
    columns = {name.strip(): at for at, name in enumerate(header)}
    needed = (*_NEEDED, "event") if wants_event else _NEEDED
    if missing := [name for name in needed if name not in columns]:
        raise DataError(
            f"{path}:1: the header lacks {', '.join(missing)} (it has {', '.join(columns) or 'nothing'}); "
            f"name the columns {','.join(needed)}"
        )
    return columns


def _parse(
    fields: list[str], columns: dict[str, int], items: ItemTable, path: Path, line: int, bad_rows: BadRows
) -> tuple[str, int, float] | None:
    if len(fields) != len(columns):
        wrong = f"{len(fields)} fields where the header has {len(columns)}"
        bad_rows.add(path, line, wrong, "quote fields that hold a comma", "wrong number of fields")
        return None
    user_id, item_id, stamp = (fields[columns[name]].strip() for name in _NEEDED)
    if not user_id:
        bad_rows.add(path, line, "user_id is empty", "name the user")
        return None
    index = items.index_of.get(item_id)
    if index is None:
        wrong = f"item {item_id!r} is not among the items"
        bad_rows.add(path, line, wrong, "add it to the items or take the row out", "unknown item")
        return None
    time = parse_time(stamp)
    if time is None:
        wrong = f"timestamp {stamp!r} is no time"
        bad_rows.add(path, line, wrong, "write a number or ISO 8601, e.g. 2024-05-01T10:00:00", "timestamp")
        return None
    return user_id, index, time


def parse_time(text: str) -> float | None:
    """A number as it is, ISO 8601 as seconds since 1970 (UTC if no zone is named), else None."""
    try:
        number = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return number if math.isfinite(number) else None
