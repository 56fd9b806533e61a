"""MiniOneRec files and plain sequences."""

import gzip
import json
from pathlib import Path

import pytest

from training.items.bad_rows import BadRows
from training.items.build import build_dataset
from training.items.config import ItemsConfig, MiniOneRecConfig, SequencesConfig
from training.items.errors import DataError
from training.items.readers import minionerec, sequences
from training.items.text import clean_description, clean_text

INTER_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
CSV_HEADER = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"
ROWS = {
    "train": [("1", [0], 1), ("2", [3], 2), ("1", [0, 1], 2), ("1", [1, 2], 3)],
    "valid": [("2", [3, 2], 0)],
    "test": [("2", [2, 0], 1)],
}


def write_inter(folder: Path) -> MiniOneRecConfig:
    folder.mkdir()
    items = {
        str(n): {
            "title": f"T&uuml;r {n}",
            "description": "['one<br />', \"it's two\"]" if n else "",
            "brand": "B",
            "categories": "X,Y",
        }
        for n in range(4)
    }
    (folder / "Shop.item.json").write_text(json.dumps(items))
    for part, rows in ROWS.items():
        lines = [f"{user}\t{' '.join(map(str, history))}\t{target}\n" for user, history, target in rows]
        (folder / f"Shop.{part}.inter").write_text(INTER_HEADER + "".join(lines))
    return MiniOneRecConfig(folder=folder, name="Shop")


def write_public(folder: Path) -> MiniOneRecConfig:
    """As in the public repository: train/NAME*.csv, info/NAME*.txt."""
    for name in ("train", "valid", "test", "info"):
        (folder / name).mkdir(parents=True)
    for part, rows in ROWS.items():
        lines = [f'A{u},"[\'x, y\']",t,"{h}",{t},"[\'<a_1>\']",<a_1>\n' for u, h, t in rows]
        (folder / part / "Shop_5_2016.csv").write_text(CSV_HEADER + "".join(lines))
    info = [f"<a_{n}><b_1>\tT&uuml;r {n}\t{n}\n" for n in range(4)]
    (folder / "info" / "Shop_5_2016.txt").write_text("".join(info))
    return MiniOneRecConfig(folder=folder, name="Shop")


def test_both_layouts_give_the_same_rows_in_order(tmp_path: Path) -> None:
    inter_items, inter = minionerec.read(write_inter(tmp_path / "inter"), 10, BadRows())
    public_items, public = minionerec.read(write_public(tmp_path / "public"), 10, BadRows())
    for part, rows in ROWS.items():
        assert getattr(inter, part).rows() == rows
        assert getattr(public, part).equals(getattr(inter, part))
    assert inter_items.to_frame()["title"].to_list() == [f"Tür {n}" for n in range(4)]
    assert public_items.to_frame()["title"].equals(inter_items.to_frame()["title"])


def test_item_json_is_cleaned(tmp_path: Path) -> None:
    frame = minionerec.read(write_inter(tmp_path / "inter"), 10, BadRows())[0].to_frame()
    assert frame["description"].to_list() == ["", *["one it's two"] * 3]
    assert json.loads(frame["metadata"][0]) == {"brand": "B", "category": "X > Y"}


def test_sequences_are_rebuilt_although_histories_are_cut(tmp_path: Path) -> None:
    config = write_inter(tmp_path / "inter")
    dataset, _ = build_dataset(ItemsConfig(source="minionerec", minionerec=config, history_limit=50))
    assert dataset.history_limit == 2
    assert dataset.train_sequences.rows() == [("1", [0, 1, 2, 3]), ("2", [3, 2])]
    assert dataset.popularity.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1\t0 9\t1", "item '9'"),
        ("1\t0\t", "item ''"),
        ("1\t\t1", "history is empty"),
        ("\t0\t1", "user is empty"),
    ],
)
def test_bad_inter_rows(tmp_path: Path, line: str, said: str) -> None:
    config = write_inter(tmp_path / "inter")
    with (config.folder / "Shop.train.inter").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=rf"Shop\.train\.inter:6: {said}"):
        minionerec.read(config, 10, BadRows())
    bad_rows = BadRows("skip")
    assert minionerec.read(config, 10, bad_rows)[1].train.rows() == ROWS["train"]
    assert len(bad_rows.found) == 1


def test_a_csv_history_is_parsed_and_never_run(tmp_path: Path) -> None:
    config = write_public(tmp_path / "public")
    with (config.folder / "train" / "Shop_5_2016.csv").open("a") as file:
        file.write("A1,[],t,\"__import__('os').getcwd()\",1,[],x\n")
    with pytest.raises(DataError, match="history .* is no list"):
        minionerec.read(config, 10, BadRows())


def test_missing_and_ambiguous_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no items of Shop"):
        minionerec.read(MiniOneRecConfig(folder=tmp_path, name="Shop"), 10, BadRows())
    config = write_public(tmp_path / "public")
    (config.folder / "valid" / "Shop_5_2018.csv").write_text(CSV_HEADER)
    with pytest.raises(DataError, match="both fit"):
        minionerec.read(config, 10, BadRows())


def test_filters_do_not_apply_to_ready_rows() -> None:
    with pytest.raises(ValueError, match="do not apply to source = 'minionerec'"):
        ItemsConfig(source="minionerec", min_item_interactions=5)


# --- sequences --------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> SequencesConfig:
    (tmp_path / "seq.txt").write_text("1 1 2 3 4\n2 4 2 1\n3 2\n")
    (tmp_path / "text.txt").write_text("A1 first item\nA2\tsecond item\nA3 third\nA4 fourth\n")
    with gzip.open(tmp_path / "map.json.gz", "wt") as file:
        json.dump({"user2id": {}, "id2item": {str(n): f"A{n}" for n in range(1, 5)}}, file)
    return SequencesConfig(
        sequences=tmp_path / "seq.txt", item_text=tmp_path / "text.txt", id_map=tmp_path / "map.json.gz"
    )


def test_plain_sequences_are_left_one_out(plain: SequencesConfig) -> None:
    dataset, _ = build_dataset(ItemsConfig(source="sequences", sequences=plain))
    assert dataset.items["item_id"].to_list() == ["A1", "A2", "A3", "A4"]
    assert dataset.items["title"].to_list() == ["first item", "second item", "third", "fourth"]
    assert dataset.train.rows() == [("1", [0], 1)]
    assert dataset.valid.rows() == [("1", [0, 1], 2), ("2", [3], 1)]
    assert dataset.test.rows() == [("1", [0, 1, 2], 3), ("2", [3, 1], 0)]


def test_an_id_map_of_lines_and_texts_of_json_do_too(plain: SequencesConfig, tmp_path: Path) -> None:
    (tmp_path / "map.tsv").write_text("".join(f"{n}\tA{n}\n" for n in range(1, 5)))
    lines = [json.dumps({"item_id": f"A{n}", "title": f"t{n}"}) + "\n" for n in range(1, 5)]
    (tmp_path / "text.jsonl").write_text("".join(lines))
    config = SequencesConfig(
        sequences=plain.sequences, item_text=tmp_path / "text.jsonl", id_map=tmp_path / "map.tsv"
    )
    items, events = sequences.read(config, BadRows())
    assert events.equals(sequences.read(plain, BadRows())[1])
    assert items.to_frame()["title"].to_list() == ["t1", "t2", "t3", "t4"]


def test_keywords_become_descriptions(plain: SequencesConfig, tmp_path: Path) -> None:
    mark = "\N{LOWER ONE EIGHTH BLOCK}"
    (tmp_path / "words.txt").write_text(f"A1 |{mark}iron|du|{mark}blue\nA3\t|{mark}red\n")
    items, _ = sequences.read(plain.model_copy(update={"item_keywords": tmp_path / "words.txt"}), BadRows())
    assert items.to_frame()["description"].to_list() == ["iron du blue", "", "red", ""]


def test_an_item_without_text_is_an_error_or_keeps_its_id_as_title(plain: SequencesConfig) -> None:
    plain.item_text.write_text("A1 first\nA2 second\nA3\nA4 fourth\n")
    with pytest.raises(DataError, match=r"text\.txt:3: item 'A3' has no text"):
        sequences.read(plain, BadRows())
    bad_rows = BadRows("skip")
    items, events = sequences.read(plain, bad_rows)
    assert events.height == 8
    assert items.to_frame()["title"].to_list() == ["first", "second", "fourth", "A3"]
    assert bad_rows.counts == {"item without text": 2}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 1 2", "user '2' comes a second time"),
        ("9", "user '9' has no items"),
        ("9 77", "'77' is not in the id"),
    ],
)
def test_bad_sequences(plain: SequencesConfig, line: str, said: str) -> None:
    with plain.sequences.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"seq\.txt:4: .*" + said):
        sequences.read(plain, BadRows())
    bad_rows = BadRows("skip")
    assert sequences.read(plain, bad_rows)[1].height == 8
    assert len(bad_rows.found) == 1


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (None, ""),
        ("  plain\n text ", "plain text"),
        ("['it', \"isn't\"]", "it isn't"),
        ("['broken's list']", "broken's list"),
        (["a", 3], "a 3"),
        ("&amp;quot;x&amp;quot; 3 < 4 &gt; 2 <br/>y", '"x" 3 < 4 > 2 y'),
        ("[not a list]", "not a list"),
    ],
)
def test_descriptions(raw: object, clean: str) -> None:
    assert clean_description(raw) == clean


def test_control_characters_go() -> None:
    assert clean_text("a\x00b\x1b[0m\tc") == "a b [0m c"
