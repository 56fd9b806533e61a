"""Input files of batch jobs, read whole and checked before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl

from service.errors import BatchError

_ITEM_SCHEMA = pl.Schema(
    {"item_id": pl.String, "title": pl.String, "description": pl.String, "metadata": pl.String}
)


def read_histories(source: Path) -> pl.DataFrame:
    """One row per user: user_id, history (item ids, oldest first).

    Args:
        source: .parquet or .jsonl with these two columns, or .csv with user_id, item_id, timestamp, one
            row per interaction (what `export-events` writes).

    Raises:
        BatchError: with what is wrong.
    """
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": lambda path: pl.read_parquet(path, columns=["user_id", "history"]),
        ".jsonl": lambda path: pl.read_ndjson(path).select("user_id", "history"),
        ".csv": _read_interactions,
    }
    frame = _read(source, readers, pl.Schema({"user_id": pl.String, "history": pl.List(pl.String)}))
    return _check(source, frame, "user_id", needed=("user_id", "history"), thing="user")


def read_items(source: Path) -> pl.DataFrame:
    """One row per item: item_id, title, description, metadata (a JSON object as text).

    Args:
        source: .jsonl as training reads it (item_id, title; description and metadata if there are any,
            other keys count as metadata), or .parquet with these columns (a bundle's items.parquet is
            one).

    Raises:
        BatchError: with what is wrong.
    """
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": _read_item_columns,
        ".jsonl": _read_item_lines,
    }
    frame = _read(source, readers, _ITEM_SCHEMA)
    return _check(source, frame, "item_id", needed=("item_id", "title"), thing="item")


def _read(
    source: Path, readers: dict[str, Callable[[Path], pl.DataFrame]], columns: pl.Schema
) -> pl.DataFrame:
    suffix = ".jsonl" if source.suffix == ".ndjson" else source.suffix
    if suffix not in readers:
        *names, last = readers
        raise BatchError(f"{source} is none of {', '.join(names)} and {last}")
    try:
        return readers[suffix](source).cast(columns)
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise BatchError(f"{source} cannot be read ({' '.join(str(error).split())[:200]})") from error


def _check(
    source: Path, frame: pl.DataFrame, key: str, *, needed: tuple[str, ...], thing: str
) -> pl.DataFrame:
    if not frame.height:
        raise BatchError(f"{source} holds no {thing}")
    if any(frame[name].null_count() for name in needed):
        raise BatchError(f"{source} holds a row without {' or '.join(needed)}")
    if frame[key].n_unique() != frame.height:
        raise BatchError(f"{source} holds a {key} more than once; one row per {thing} is needed")
    return frame


def _read_interactions(source: Path) -> pl.DataFrame:
    rows = pl.read_csv(source, schema_overrides={"user_id": pl.String, "item_id": pl.String})
    ordered = rows.sort("timestamp", maintain_order=True)
    frame = ordered.group_by("user_id", maintain_order=True).agg(pl.col("item_id").alias("history"))
    return frame.sort("user_id")


def _read_item_columns(source: Path) -> pl.DataFrame:
    frame = pl.read_parquet(source)
    empty = [pl.lit("").alias(name) for name in ("description", "metadata") if name not in frame.columns]
    chosen = frame.with_columns(empty).select(*_ITEM_SCHEMA)
    return chosen.with_columns(pl.col("description", "metadata").fill_null(""))


def _read_item_lines(source: Path) -> pl.DataFrame:
    rows = []
    with source.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                item_id, title = str(row.pop("item_id")), row.pop("title")
                description, metadata = row.pop("description", None) or "", row.pop("metadata", None) or {}
                text = json.dumps({**row, **metadata}, ensure_ascii=False)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f'line {number} is no {{"item_id": ..., "title": ...}}: {type(error).__name__} {error}'
                ) from error
            rows.append((item_id, title, description, text))
    return pl.DataFrame(rows, schema=_ITEM_SCHEMA, orient="row")
