"""Splits leak nothing, and training sequences are exactly what the train rows say."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.items.dataset import ROW_SCHEMA, Dataset, whole_sequences
from training.items.errors import DataError
from training.items.splits import EVENT_SCHEMA, filter_events, global_time, leave_one_out, next_item_rows

NUM_ITEMS = 12


@st.composite
def event_frames(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from("uvwxy"), st.integers(0, NUM_ITEMS - 1), st.integers(0, 30)),
            min_size=1,
            max_size=60,
        )
    )
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


def by_user(events: pl.DataFrame) -> dict[str, list[tuple[int, float]]]:
    """The plain way: every user's (item, time), stably sorted by time."""
    result: dict[str, list[tuple[int, float]]] = {}
    for user, item, time in events.iter_rows():
        result.setdefault(user, []).append((item, time))
    return {user: sorted(rows, key=lambda row: row[1]) for user, rows in result.items()}


@given(event_frames(), st.integers(1, 6))
def test_rows_are_all_prefixes_with_their_next_item(events: pl.DataFrame, limit: int) -> None:
    expected = [
        (user, [item for item, _ in rows[max(0, at - limit) : at]], rows[at][0], rows[at][1])
        for user, rows in by_user(events).items()
        for at in range(1, len(rows))
    ]
    rows = next_item_rows(events, limit).select("user_id", "history", "target", "time").rows()
    assert rows == expected


@given(event_frames(), st.integers(1, 6))
def test_leave_one_out_keeps_the_last_two_apart(events: pl.DataFrame, limit: int) -> None:
    splits = leave_one_out(events, limit)
    users = by_user(events)
    long = {user: [item for item, _ in rows] for user, rows in users.items() if len(rows) >= 3}
    assert dict(splits.test.select("user_id", "target").rows()) == {u: items[-1] for u, items in long.items()}
    assert dict(splits.valid.select("user_id", "target").rows()) == {
        u: items[-2] for u, items in long.items()
    }
    trained = whole_sequences(splits.train, limit)
    for user, items in trained.iter_rows():
        whole = [item for item, _ in users[user]]
        assert items == (whole[:-2] if len(whole) >= 3 else whole)


@given(event_frames(), st.integers(1, 6))
def test_global_time_never_trains_on_the_future(events: pl.DataFrame, limit: int) -> None:
    splits = global_time(events, limit)
    rows = next_item_rows(events, limit)
    assert splits.train.height == rows.height * 8 // 10
    assert splits.train.height + splits.valid.height + splits.test.height == rows.height
    times = rows.sort("time", maintain_order=True)["time"].to_list()
    latest = times[splits.train.height - 1] if splits.train.height else -1.0
    allowed: dict[str, list[int]] = {}
    for user, user_rows in by_user(events).items():
        allowed[user] = [item for item, time in user_rows if time <= latest]
    for user, items in whole_sequences(splits.train, limit).iter_rows():
        assert items == allowed[user][: len(items)]


@given(event_frames(), st.integers(1, 6), st.randoms(use_true_random=False))
def test_sequences_survive_rows_of_users_being_interleaved(events: pl.DataFrame, limit: int, chance) -> None:
    rows = next_item_rows(events, limit).select(list(ROW_SCHEMA))
    owners = rows["user_id"].to_list()
    shuffled = owners.copy()
    chance.shuffle(shuffled)
    queues = {user: iter(np.flatnonzero(np.asarray(owners) == user).tolist()) for user in set(owners)}
    mixed = rows[[next(queues[user]) for user in shuffled]] if owners else rows
    expected = {user: [i for i, _ in items] for user, items in by_user(events).items() if len(items) > 1}
    assert dict(whole_sequences(mixed, limit).rows()) == expected


def test_a_gap_starts_a_new_sequence() -> None:
    rows = pl.DataFrame(
        {"user_id": ["a", "a", "a"], "history": [[1], [1, 2], [3, 4]], "target": [2, 3, 5]}, schema=ROW_SCHEMA
    )
    assert whole_sequences(rows, 2).rows() == [("a", [1, 2, 3]), ("a", [3, 4, 5])]


@settings(max_examples=50)
@given(event_frames(), st.integers(1, 4), st.integers(0, 4))
def test_filters_hold_together(events: pl.DataFrame, min_user: int, min_item: int) -> None:
    kept = filter_events(events, min_user=min_user, min_item=min_item)
    assert all(count >= min_user for count in kept.group_by("user_id").len()["len"])
    assert all(count >= min_item for count in kept.group_by("item").len()["len"])


# --- dataset ----------------------------------------------------------------------------------------


def small_dataset() -> Dataset:
    items = pl.DataFrame(
        {"item_id": list("abcd"), "title": list("ABCD"), "description": [""] * 4, "metadata": ["{}"] * 4}
    )
    events = pl.DataFrame(
        {
            "user_id": ["u"] * 5 + ["v"] * 4,
            "item": [0, 1, 2, 3, 0, 1, 1, 3, 2],
            "time": list(map(float, range(9))),
        },
        schema=EVENT_SCHEMA,
    )
    splits = leave_one_out(events, 3)
    return Dataset.make(items, splits.train, splits.valid, splits.test, history_limit=3, name="small")


def test_saved_data_load_again(tmp_path: Path) -> None:
    dataset = small_dataset()
    dataset.save(tmp_path)
    loaded = Dataset.load(tmp_path, with_test=True)
    for name in ("items", "train", "valid", "test", "train_sequences"):
        assert getattr(loaded, name).equals(getattr(dataset, name))
    assert loaded.popularity.tolist() == dataset.popularity.tolist() == [1, 3, 1, 0]
    assert (loaded.history_limit, loaded.name, loaded.num_items) == (3, "small", 4)


def test_test_rows_are_out_of_reach_unless_asked_for(tmp_path: Path) -> None:
    small_dataset().save(tmp_path)
    with pytest.raises(AssertionError, match="evaluation stage alone"):
        _ = Dataset.load(tmp_path).test


def test_nothing_of_valid_or_test_counts_as_popular() -> None:
    dataset = small_dataset()
    assert int(dataset.popularity.sum()) == dataset.train_sequences["items"].list.len().sum()
    assert dataset.train_sequences.rows() == [("u", [0, 1, 2]), ("v", [1, 1])]


def test_a_damaged_dataset_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run the stage again"):
        Dataset.load(tmp_path)


@given(event_frames(), st.integers(1, 6))
def test_with_validation_rows_only_the_test_targets_are_left_out(events: pl.DataFrame, limit: int) -> None:
    splits = leave_one_out(events, limit)
    items = pl.DataFrame(
        {name: ["x"] * NUM_ITEMS for name in ("item_id", "title", "description", "metadata")}
    )
    dataset = Dataset.make(items, splits.train, splits.valid, splits.test, history_limit=limit)
    more = dataset.with_validation()
    expected = {
        user: [item for item, _ in rows[: len(rows) - (len(rows) >= 3)]]
        for user, rows in by_user(events).items()
        if len(rows) >= 2
    }
    assert dict(more.train_sequences.rows()) == expected
    assert more.train.height == splits.train.height + splits.valid.height
    assert more.popularity.sum() == sum(len(sequence) for sequence in expected.values())
    assert not more.valid.height
    assert more.test.equals(dataset.test)
