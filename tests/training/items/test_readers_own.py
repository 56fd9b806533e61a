"""Own files: good rows are read, bad ones are named with file and line, or skipped and listed."""

import gzip
from pathlib import Path

import pytest

from training.items.bad_rows import BadRows
from training.items.build import build_dataset
from training.items.config import ItemsConfig, OwnConfig
from training.items.errors import DataError
from training.items.readers import own

ITEMS = """\
{"item_id": "a", "title": "A &amp; B", "description": ["<b>1", "2"], "metadata": {"price": 3}, "brand": "X"}
{"item_id": 7, "title": "Seven"}

{"item_id": "c", "title": "C", "description": null}
"""
INTERACTIONS = """\
user_id,item_id,timestamp,event
u,c,2024-01-02T00:00:00,buy
u,a,2024-01-01T00:00:00,buy
u,7,1704240000,view
v,7,5,buy
"""


@pytest.fixture
def files(tmp_path: Path) -> OwnConfig:
    (tmp_path / "items.jsonl").write_text(ITEMS)
    (tmp_path / "interactions.csv").write_text(INTERACTIONS)
    return OwnConfig(items=tmp_path / "items.jsonl", interactions=tmp_path / "interactions.csv")


def test_items_are_cleaned_and_other_keys_become_metadata(files: OwnConfig) -> None:
    frame = own.read(files, BadRows())[0].to_frame()
    assert frame["item_id"].to_list() == ["a", "7", "c"]
    assert frame["title"].to_list() == ["A & B", "Seven", "C"]
    assert frame["description"].to_list() == ["1 2", "", ""]
    assert frame["metadata"][0] == '{"brand": "X", "price": 3}'


def test_interactions_keep_user_item_and_time(files: OwnConfig) -> None:
    events = own.read(files, BadRows())[1]
    assert events.rows() == [
        ("u", 2, 1704153600.0),
        ("u", 0, 1704067200.0),
        ("u", 1, 1704240000.0),
        ("v", 1, 5.0),
    ]


def test_events_can_be_chosen(files: OwnConfig) -> None:
    events = own.read(files.model_copy(update={"events": ("view",)}), BadRows())[1]
    assert events["item"].to_list() == [1]


def test_gzip_is_read(files: OwnConfig, tmp_path: Path) -> None:
    packed = tmp_path / "items.jsonl.gz"
    packed.write_bytes(gzip.compress(ITEMS.encode()))
    assert len(own.read_items(packed, BadRows())) == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"item_id": "a"', "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"title": "x"}', "item_id is None"),
        ('{"item_id": true, "title": "x"}', "item_id is True"),
        ('{"item_id": "z", "title": " "}', "title of item 'z'"),
        ('{"item_id": "a", "title": "again"}', "'a' comes a second time"),
        ('{"item_id": "z", "title": "x", "metadata": 3}', "metadata of item 'z'"),
    ],
)
def test_a_bad_item_is_named_or_skipped(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": "a", "title": "A"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"items\.jsonl:2: .*" + said.replace("'", ".")) as caught:
        own.read_items(path, BadRows("error"))
    assert 'on_bad_row = "skip"' in str(caught.value)
    bad_rows = BadRows("skip")
    assert len(own.read_items(path, bad_rows)) == 1
    assert [(row["file"], row["line"]) for row in bad_rows.found] == [("items.jsonl", "2")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("u,a", "2 fields where the header has 4"),
        (",a,1,buy", "user_id is empty"),
        ("u,nothing,1,buy", "item 'nothing' is not among the items"),
        ("u,a,yesterday,buy", "timestamp 'yesterday' is no time"),
        ("u,a,nan,buy", "timestamp 'nan' is no time"),
    ],
)
def test_a_bad_interaction_is_named_or_skipped(files: OwnConfig, line: str, said: str) -> None:
    files.interactions.write_text(INTERACTIONS + line + "\n")
    with pytest.raises(DataError, match=r"interactions\.csv:6: .*" + said):
        own.read(files, BadRows("error"))
    bad_rows = BadRows("skip")
    assert own.read(files, bad_rows)[1].height == 4
    assert [row["line"] for row in bad_rows.found] == ["6"]
    assert sum(bad_rows.counts.values()) == 1


def test_line_numbers_count_quoted_line_breaks(files: OwnConfig) -> None:
    files.interactions.write_text('user_id,item_id,timestamp\n"u\nv",a,1\nu,zzz,2\n')
    with pytest.raises(DataError, match=r":4: item 'zzz'"):
        own.read(files, BadRows())


def test_a_missing_column_is_named(files: OwnConfig) -> None:
    files.interactions.write_text("user,item_id,timestamp\nu,a,1\n")
    with pytest.raises(DataError, match=r":1: the header lacks user_id \(it has user, item_id, timestamp\)"):
        own.read(files, BadRows())


def test_missing_empty_and_binary_files_are_explained(files: OwnConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        own.read_items(tmp_path / "none.jsonl", BadRows())
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no usable item"):
        own.read_items(tmp_path / "empty.jsonl", BadRows())
    (tmp_path / "latin.jsonl").write_bytes('{"item_id": "a", "title": "Tür"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        own.read_items(tmp_path / "latin.jsonl", BadRows())
    (tmp_path / "no.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match="cannot be read"):
        own.read_items(tmp_path / "no.jsonl.gz", BadRows())


def test_too_little_data_is_explained(files: OwnConfig) -> None:
    with pytest.raises(DataError, match="no train row"):
        build_dataset(ItemsConfig(source="own", own=files))
    with pytest.raises(DataError, match="no interaction is left"):
        build_dataset(ItemsConfig(source="own", own=files, min_user_interactions=9))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12", 12.0), ("1.5e3", 1500.0), ("1970-01-01", 0.0), ("1970-01-01T01:00:00+01:00", 0.0), ("inf", None)],
)
def test_times(text: str, seconds: float | None) -> None:
    assert own.parse_time(text) == seconds
