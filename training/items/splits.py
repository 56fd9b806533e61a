"""Cut chronological events into train, validation and test rows.

An event is (user, item, time). A row is a history (the newest `history_limit` items of the user
before the target, oldest first) and the target. Every event but a user's first gives one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from training.items.dataset import ROW_SCHEMA

EVENT_SCHEMA = {"user_id": pl.String, "item": pl.Int32, "time": pl.Float64}


@dataclass(frozen=True)
class Splits:
    """Rows of the three parts: columns user_id, history, target; a user's rows in order of time."""

    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame


def filter_events(events: pl.DataFrame, *, min_user: int = 1, min_item: int = 0) -> pl.DataFrame:
    """Leave out rare items and short users, again and again until both limits hold.

    Args:
        events: columns user_id, item, time.
        min_user: interactions a user needs.
        min_item: interactions an item needs.
    """
    while True:
        kept = events.filter((pl.len().over("item") >= min_item) & (pl.len().over("user_id") >= min_user))
        if kept.height == events.height:
            return kept
        events = kept


def leave_one_out(events: pl.DataFrame, history_limit: int) -> Splits:
    """Each user's last event is the test target, the one before it the validation target.

    Users with fewer than 3 events have nothing to spare: all their rows train.
    """
    rows = next_item_rows(events, history_limit)
    from_end = pl.col("length") - 1 - pl.col("position")
    enough = pl.col("length") >= 3
    part = pl.when(enough & (from_end == 0)).then(2).when(enough & (from_end == 1)).then(1).otherwise(0)
    return _by_part(rows.with_columns(part=part))


def global_time(events: pl.DataFrame, history_limit: int) -> Splits:
    """The first 80 % of all rows by the target's time train, the next 10 % validate, the last 10 % test."""
    rows = next_item_rows(events, history_limit).sort("time", maintain_order=True)
    num_rows = rows.height
    at = np.arange(num_rows)
    part = (at >= num_rows * 8 // 10).astype(np.int8) + (at >= num_rows * 9 // 10).astype(np.int8)
    return _by_part(rows.with_columns(part=pl.Series(part)))


def next_item_rows(events: pl.DataFrame, history_limit: int) -> pl.DataFrame:
    """One row per event that has a history.

    Args:
        events: columns user_id, item, time, in any order; equal times keep the order given.

    Returns:
        Columns user_id, history, target, time (of the target), position (of the target in its
        user's sequence, from 0), length (of that sequence). Users in order of first appearance,
        a user's rows in order of time.
    """
    ordered = (
        events.with_row_index("at")
        .with_columns(first=pl.col("at").min().over("user_id"))
        .sort("first", "time", "at")
        .with_columns(position=pl.int_range(pl.len()).over("user_id"), length=pl.len().over("user_id"))
    )
    items = ordered["item"].to_numpy()
    position = ordered["position"].to_numpy()
    target_at = np.flatnonzero(position > 0)
    sizes = np.minimum(position[target_at], history_limit)
    histories = _ragged_lists(items, first=target_at - sizes, sizes=sizes)
    rows = ordered[target_at].select("user_id", "time", "position", "length", target="item")
    return rows.with_columns(history=histories)


def _ragged_lists(values: np.ndarray, *, first: np.ndarray, sizes: np.ndarray) -> pl.Series:
    """values[first[i] : first[i] + sizes[i]] for every i, as a list column. Every size is >= 1."""
    if not len(first):
        return pl.Series("history", [], dtype=pl.List(pl.Int32))
    row = np.repeat(np.arange(len(first)), sizes)
    within = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    flat = values[np.repeat(first, sizes) + within].astype(np.int32)
    lists = pl.DataFrame({"row": row, "history": flat}).group_by("row", maintain_order=True).agg("history")
    return lists["history"]


def _by_part(rows: pl.DataFrame) -> Splits:
    def part(number: int) -> pl.DataFrame:
        chosen = rows.filter(pl.col("part") == number).select(list(ROW_SCHEMA))
        return chosen.cast(pl.Schema(ROW_SCHEMA))

    return Splits(train=part(0), valid=part(1), test=part(2))
