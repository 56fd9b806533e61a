"""RecBole's atomic files: typed headers, both splits, and sentences for what is wrong."""

from pathlib import Path
from typing import Any

import pytest

from training.items.bad_rows import BadRows
from training.items.build import build_dataset
from training.items.config import ItemsConfig, RecBoleConfig
from training.items.errors import DataError
from training.items.readers import recbole

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tprice:float\n"


@pytest.fixture
def files(tmp_path: Path) -> RecBoleConfig:
    lines = [
        "a\t1\t5\t30",
        "a\t2\t4\t10",
        "a\t3\t1\t20",
        "b\t2\t3\t5",
        "b\t1\t3\t6",
        "b\t3\t5\t7",
        "a\t2\t5\t40",
    ]
    (tmp_path / "x.inter").write_text(INTER + "".join(line + "\n" for line in lines))
    items = ["1\tToy Story\t1995\tAnimation Comedy\t2.5", "2\tHeat\t\tCrime\t", "3\tSpeed\t1994\tAction\t1"]
    (tmp_path / "x.item").write_text(ITEM + "".join(line + "\n" for line in items))
    return RecBoleConfig(folder=tmp_path, name="x")


def events_of(config: RecBoleConfig) -> list[Any]:
    return recbole.read(config, BadRows())[1].rows()


def test_types_are_read_as_the_header_says(files: RecBoleConfig) -> None:
    items = recbole.read(files, BadRows())[0].to_frame()
    assert items["title"].to_list() == ["Toy Story", "Heat", "Speed"]
    assert items["metadata"].to_list() == [
        '{"class": ["Animation", "Comedy"], "price": 2.5, "release_year": "1995"}',
        '{"class": ["Crime"]}',
        '{"class": ["Action"], "price": 1.0, "release_year": "1994"}',
    ]


def test_events_are_split_by_user_or_by_time(files: RecBoleConfig) -> None:
    dataset, _ = build_dataset(ItemsConfig(source="recbole", recbole=files))
    assert dataset.test.rows() == [("a", [1, 2, 0], 1), ("b", [1, 0], 2)]
    # Rows by time: b's at 6 and 7, a's at 20, 30 and 40; four train, one tests, none is left to validate.
    by_time = files.model_copy(update={"split": "global_time"})
    with pytest.raises(DataError, match="leave no validation row"):
        build_dataset(ItemsConfig(source="recbole", recbole=by_time))


def test_low_ratings_are_left_out(files: RecBoleConfig) -> None:
    assert len(events_of(files)) == 7
    kept = events_of(files.model_copy(update={"min_rating": 4.0}))
    assert [row[:2] for row in kept] == [("a", 0), ("a", 1), ("b", 2), ("a", 1)]


def test_without_times_the_file_s_order_counts(files: RecBoleConfig) -> None:
    (files.folder / "x.inter").write_text("user_id:token\titem_id:token\na\t3\na\t1\na\t2\n")
    dataset_events = events_of(files)
    assert [row[1] for row in sorted(dataset_events, key=lambda row: row[2])] == [2, 0, 1]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("x.inter", INTER + "a\t9\t5\t1\n", "'9' is not among the items"),
        ("x.inter", INTER + "a\t1\t5\tsoon\n", "timestamp 'soon' is no number"),
        ("x.inter", INTER + "a\t1\t5\n", "3 fields where the header has 4"),
        ("x.item", ITEM + "1\t\t\t\t\n", "item '1' has no title"),
        ("x.item", ITEM + "1\tA\t\t\t\n1\tB\t\t\t\n", "'1' comes a second time"),
    ],
)
def test_bad_rows_are_placed(files: RecBoleConfig, file: str, text: str, said: str) -> None:
    (files.folder / file).write_text(text)
    with pytest.raises(DataError, match=rf"{file}:[23]: .*{said}"):
        recbole.read(files, BadRows())


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("x.inter", "user_id\titem_id\n", "'user_id' has no type; write name:type"),
        ("x.inter", "user:token\titem_id:token\n", "no column 'user_id'"),
        (
            "x.item",
            "item_id:token\tplot:token_seq\n1\tx\n",
            "looks like a title; set items.recbole.title_column",
        ),
        ("x.item", "", "is empty"),
    ],
)
def test_headers_that_do_not_fit_are_explained(files: RecBoleConfig, file: str, text: str, said: str) -> None:
    (files.folder / file).write_text(text)
    with pytest.raises(DataError, match=said):
        recbole.read(files, BadRows())


def test_a_title_column_can_be_named(files: RecBoleConfig) -> None:
    named = files.model_copy(update={"title_column": "class"})
    assert recbole.read(named, BadRows())[0].to_frame()["title"][0] == "Animation Comedy"
