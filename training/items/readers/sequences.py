"""Read lines of `user item item ...` (oldest first) and a text for every item.

This is the layout of the S3-Rec family of data sets (Beauty, Sports, Toys, Yelp). The texts may
use other ids than the sequences (ASINs, say); `id_map` then tells which is which.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from training.items.bad_rows import BadRows
from training.items.config import SequencesConfig
from training.items.errors import DataError
from training.items.item_table import ItemTable
from training.items.readers.own import read_items
from training.items.splits import EVENT_SCHEMA
from training.items.text import clean_text
from training.items.text_files import numbered_lines, open_text


def read(config: SequencesConfig, bad_rows: BadRows) -> tuple[ItemTable, pl.DataFrame]:
    """Read sequences and texts.

    Returns:
        The items, and events with the columns user_id, item (index), time (place in the line).

    Raises:
        DataError: a file or a row cannot be used; see `BadRows`.
    """
    id_map = read_id_map(config.id_map) if config.id_map else {}
    if config.item_text.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        items = read_items(config.item_text, bad_rows)
    else:
        keywords = read_keywords(config.item_keywords, bad_rows) if config.item_keywords else {}
        items = read_item_text(config.item_text, bad_rows, keywords)
    return items, _read_sequences(config, items, id_map, bad_rows)


def _id_and_text(content: str) -> tuple[str, str]:
    """Split a line at its tab, or else at its first space."""
    item_id, separator, text = content.partition("\t")
    if not separator:
        item_id, _, text = content.strip().partition(" ")
    return item_id.strip(), text


def read_keywords(path: Path, bad_rows: BadRows) -> dict[str, str]:
    """Read lines of item and words separated by '|'. Marks of a sub-word tokenizer become spaces."""
    found: dict[str, str] = {}
    for line, content in numbered_lines(path):
        item_id, text = _id_and_text(content)
        words = clean_text(text.replace("|\N{LOWER ONE EIGHTH BLOCK}", " ").replace("|", " "))
        if not item_id or not words:
            bad_rows.add(path, line, "no item or no words", "write item, tab, words", "keywords")
        else:
            found[item_id] = words
    return found


def read_item_text(path: Path, bad_rows: BadRows, descriptions: Mapping[str, str] | None = None) -> ItemTable:
    """Read lines of item, a tab (or else the first space), text; descriptions by item may go along."""
    descriptions = descriptions or {}
    items = ItemTable()
    for line, content in numbered_lines(path):
        item_id, text = _id_and_text(content)
        title = clean_text(text)
        if not item_id:
            bad_rows.add(path, line, "no item before the tab", "write item, tab, text")
        elif item_id in items.index_of:
            wrong = f"item {item_id!r} comes a second time"
            bad_rows.add(path, line, wrong, "keep one line per item", "item twice")
        elif not title:
            # Not lost: it is named again, with its id as title, if a sequence holds it.
            bad_rows.add(path, line, f"item {item_id!r} has no text", "write its text", "item without text")
        else:
            items.add(item_id, title, descriptions.get(item_id, ""))
    if not len(items):
        raise DataError(f"{path} holds no usable item text; write lines of item, tab, text")
    return items


def read_id_map(path: Path) -> dict[str, str]:
    """Read what the ids of the sequences are called among the texts."""
    if path.name.removesuffix(".gz").endswith(".json"):
        with open_text(path) as file:
            try:
                loaded = json.load(file)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}); check the file") from error
        mapping = loaded.get("id2item", loaded) if isinstance(loaded, dict) else None
        if not isinstance(mapping, dict) or not all(isinstance(v, str | int) for v in mapping.values()):
            raise DataError(f"{path} is no id map; write a JSON object of id to item, or key it 'id2item'")
        return {str(key): str(value) for key, value in mapping.items()}
    mapping = {}
    for line, content in numbered_lines(path):
        key, separator, value = content.partition("\t")
        if not separator or not key.strip() or not value.strip():
            raise DataError(f"{path}:{line}: no id map line; write id, tab, item")
        mapping[key.strip()] = value.strip()
    return mapping


def _read_sequences(
    config: SequencesConfig, items: ItemTable, id_map: dict[str, str], bad_rows: BadRows
) -> pl.DataFrame:
    path = config.sequences
    users: list[str] = []
    indices: list[int] = []
    times: list[float] = []
    seen: set[str] = set()
    for line, content in numbered_lines(path):
        user_id, *sequence = content.split()
        if user_id in seen:
            bad_rows.add(path, line, f"user {user_id!r} comes a second time", "join the lines", "user twice")
            continue
        if not sequence:
            bad_rows.add(
                path, line, f"user {user_id!r} has no items", "take the line out", "user without items"
            )
            continue
        seen.add(user_id)
        for place, raw_id in enumerate(sequence):
            index = _index(raw_id, items, id_map, config, line, bad_rows)
            if index is not None:
                users.append(user_id)
                indices.append(index)
                times.append(float(place))
    if not users:
        raise DataError(f"{path} holds no usable sequence; write lines of user item item ...")
    return pl.DataFrame({"user_id": users, "item": indices, "time": times}, schema=EVENT_SCHEMA)


def _index(
    raw_id: str,
    items: ItemTable,
    id_map: dict[str, str],
    config: SequencesConfig,
    line: int,
    bad_rows: BadRows,
) -> int | None:
    item_id = id_map.get(raw_id) if id_map else raw_id
    if item_id is None:
        wrong = f"item {raw_id!r} is not in the id map {config.id_map}"
        bad_rows.add(config.sequences, line, wrong, "add it there", "item not in the id map")
        return None
    index = items.index_of.get(item_id)
    if index is None:
        wrong = f"item {item_id!r} has no text in {config.item_text.name}"
        bad_rows.add(config.sequences, line, wrong, "add its text", "item without text")
        index = items.add(item_id, item_id)  # a real item: skipping it would break the sequences
    return index
