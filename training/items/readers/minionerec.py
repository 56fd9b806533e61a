"""Read the MiniOneRec layout: ready rows of history and target, kept as they are and in order.

Rows come as the repository's CSVs (columns user_id, history_item_id = a printed list, item_id; the
user id has an "A" before it) or as `.inter` files (tab-separated user_id:token,
item_id_list:token_seq, item_id:token). Both hold the same rows. Items come from `item.json`
(title, description, brand, categories), or, titles only, from the info txt (SID, title, id).
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from training.items.bad_rows import BadRows
from training.items.config import MiniOneRecConfig
from training.items.dataset import ROW_SCHEMA
from training.items.errors import DataError
from training.items.item_table import ItemTable
from training.items.splits import Splits
from training.items.text import clean_description, clean_text
from training.items.text_files import numbered_lines, open_text

_ITEM_PATTERNS = ("{name}.item.json", "{name}.item.json.gz", "info_{name}*.txt", "{name}*.txt")
_ROW_PATTERNS = ("{name}.{part}.inter", "{name}.{part}.inter.gz", "{part}.csv", "{part}.csv.gz")
_PUBLIC_PATTERNS = ("{part}/{name}*.csv", "{part}/{name}*.csv.gz")


def read(config: MiniOneRecConfig, history_limit: int, bad_rows: BadRows) -> tuple[ItemTable, Splits]:
    """Read items and the three parts.

    Raises:
        DataError: a file or a row cannot be used; see `BadRows`.
    """
    items_path = find_items(config)
    if items_path.name.removesuffix(".gz").endswith(".json"):
        items = _read_item_json(items_path, bad_rows)
    else:
        items = _read_info(items_path, bad_rows)
    parts = {
        part: _read_rows(find_rows(config, part), items, history_limit, bad_rows)
        for part in ("train", "valid", "test")
    }
    return items, Splits(**parts)


def find_items(config: MiniOneRecConfig) -> Path:
    """The file of items: item.json if there is one, else the info txt."""
    if config.items:
        return config.folder / config.items
    for folder in (".", "index", "info"):
        for pattern in _ITEM_PATTERNS:
            if pattern == "{name}*.txt" and folder != "info":
                continue
            if found := _only(config.folder / folder, pattern.format(name=config.name)):
                return found
    raise DataError(
        f"no items of {config.name} in {config.folder} (looked for {config.name}.item.json and the info txt, "
        "there and in index/ and info/); set items.minionerec.folder, or items.minionerec.items to the file"
    )


def find_rows(config: MiniOneRecConfig, part: str) -> Path:
    """The file of one part's rows."""
    given: Path | None = getattr(config, part)
    if given:
        return config.folder / given
    for pattern in (*_ROW_PATTERNS, *_PUBLIC_PATTERNS):
        if found := _only(config.folder, pattern.format(name=config.name, part=part)):
            return found
    raise DataError(
        f"no {part} rows of {config.name} in {config.folder} (looked for {config.name}.{part}.inter, "
        f"{part}.csv and {part}/{config.name}*.csv); set items.minionerec.folder, or "
        f"items.minionerec.{part} to the file"
    )


def _only(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise DataError(
            f"{found[0]} and {found[1]} both fit; name the file to use in the recipe's [items.minionerec]"
        )
    return found[0] if found else None


def _read_item_json(path: Path, bad_rows: BadRows) -> ItemTable:
    with open_text(path) as file:
        try:
            loaded = json.load(file)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}); download it again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path} is no object of id to item; give MiniOneRec's item.json")
    items = ItemTable()
    for item_id, row in loaded.items():
        title = clean_text(str(row.get("title") or "")) if isinstance(row, dict) else ""
        if not title:
            wrong = f"item {item_id!r} has no title"
            bad_rows.add(path, f"item {item_id}", wrong, "give every item a title", "item without title")
            title = f"item {item_id}"  # kept: its rows would be lost with it
        row = row if isinstance(row, dict) else {}
        items.add(item_id, title, clean_description(row.get("description")), _metadata(row))
    return items


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    kept = {"brand": clean_text(str(row.get("brand") or ""))}
    categories = row.get("categories") or ""
    parts = categories if isinstance(categories, list) else str(categories).split(",")
    kept["category"] = " > ".join(part for part in map(clean_text, map(str, parts)) if part)
    return {key: value for key, value in kept.items() if value}


def _read_info(path: Path, bad_rows: BadRows) -> ItemTable:
    items = ItemTable()
    for line, content in numbered_lines(path):
        fields = content.split("\t")
        if len(fields) != 3 or not clean_text(fields[1]) or not fields[2].strip():
            bad_rows.add(path, line, "not SID, title, id with tabs between", "download it again")
        elif fields[2].strip() in items.index_of:
            wrong = f"item {fields[2].strip()!r} comes a second time"
            bad_rows.add(path, line, wrong, "download it again", "item twice")
        else:
            items.add(fields[2].strip(), clean_text(fields[1]))
    if not len(items):
        raise DataError(f"{path} holds no items; give MiniOneRec's info txt or item.json")
    return items


def _read_rows(path: Path, items: ItemTable, history_limit: int, bad_rows: BadRows) -> pl.DataFrame:
    is_csv = path.name.removesuffix(".gz").endswith(".csv")
    rows: dict[str, list] = {"user_id": [], "history": [], "target": []}
    for line, user_id, raw_history, raw_target in _csv_rows(path) if is_csv else _inter_rows(path):
        raw_ids = _ids(raw_history) if is_csv else raw_history.split()
        if raw_ids is None:
            wrong = f"history {raw_history[:40]!r} is no list"
            bad_rows.add(path, line, wrong, "write it as [1, 2, 3]", "history is no list")
            continue
        if not user_id or not raw_ids:
            wrong = "user is empty" if not user_id else "history is empty"
            bad_rows.add(path, line, wrong, "take the row out")
            continue
        unknown = next((i for i in (*raw_ids, raw_target) if i not in items.index_of), None)
        if unknown is not None:
            wrong = f"item {unknown!r} is not among the items"
            bad_rows.add(path, line, wrong, "use the files of one release together", "unknown item")
            continue
        rows["user_id"].append(user_id)
        rows["history"].append([items.index_of[i] for i in raw_ids[-history_limit:]])
        rows["target"].append(items.index_of[raw_target])
    return pl.DataFrame(rows, schema=ROW_SCHEMA)


def _csv_rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    needed = ("user_id", "history_item_id", "item_id")
    with open_text(path) as file:
        reader = csv.DictReader(file)
        if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
            raise DataError(f"{path}:1: the header lacks {', '.join(missing)}; give a MiniOneRec CSV")
        for row in reader:
            user_id, history, target = ((row[name] or "").strip() for name in needed)
            # "A6948" in the CSVs is user 6948 of the .inter files.
            plain = user_id[1:] if user_id.startswith("A") and user_id[1:].isdigit() else user_id
            yield reader.line_num, plain, history, target


def _inter_rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    lines = numbered_lines(path)
    header = next(lines, (1, ""))[1].split("\t")
    names = [field.partition(":")[0] for field in header]
    if names[:3] != ["user_id", "item_id_list", "item_id"]:
        raise DataError(
            f"{path}:1: the header is {header}; it must be user_id:token, item_id_list:token_seq, "
            "item_id:token with tabs between"
        )
    for line, content in lines:
        fields = [*content.split("\t"), "", ""]
        yield line, fields[0].strip(), fields[1], fields[2].strip()


def _ids(printed: str) -> list[str] | None:
    try:
        parsed = ast.literal_eval(printed)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(part) for part in parsed] if isinstance(parsed, list | tuple) else None
