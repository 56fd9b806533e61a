"""The real data sets, where they lie beside the repository."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.items.build import build_dataset
from training.items.config import ItemsConfig, MiniOneRecConfig, RecBoleConfig, SequencesConfig
from training.recipe import load_recipe

DATA = Path(__file__).parents[3].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets do not lie in ../shared/data")


def test_industrial_rows_are_the_official_ones_in_both_forms() -> None:
    folder = DATA / "minionerec_industrial"
    dataset, bad_rows = build_dataset(
        ItemsConfig(source="minionerec", minionerec=MiniOneRecConfig(folder=folder))
    )
    assert (dataset.num_items, dataset.train.height, dataset.valid.height, dataset.test.height) == (
        3686,
        36259,
        4532,
        4533,
    )
    assert not bad_rows.found
    assert (dataset.items["description"] != "").sum() >= 3400
    assert not dataset.items["title"].str.contains("&[a-z]+;").any()
    official = MiniOneRecConfig(folder=folder, valid=Path("valid.csv.gz"), test=Path("test.csv.gz"))
    again, _ = build_dataset(ItemsConfig(source="minionerec", minionerec=official))
    assert again.valid.equals(dataset.valid)
    assert again.test.equals(dataset.test)


def test_beauty_is_left_one_out() -> None:
    folder = DATA / "amazon_beauty"
    config = SequencesConfig(
        sequences=folder / "Beauty.txt",
        item_text=folder / "idgenrec_item_text_ids.txt",
        id_map=folder / "datamaps.json.gz",
    )
    dataset, bad_rows = build_dataset(ItemsConfig(source="sequences", sequences=config, on_bad_row="skip"))
    assert (dataset.num_items, dataset.test.height, dataset.train.height) == (12101, 22363, 131413)
    assert bad_rows.counts == {"item without text": 2}
    assert dataset.items["title"].to_list()[-1] == "B001LTVF7G"


@pytest.mark.parametrize(("split", "rows"), [("leave_one_out", (97171, 943)), ("global_time", (79245, 9906))])
def test_movielens_in_both_splits(split: Any, rows: tuple[int, int]) -> None:
    config = RecBoleConfig(folder=DATA / "ml-100k", split=split)
    dataset, bad_rows = build_dataset(ItemsConfig(source="recbole", recbole=config))
    assert not bad_rows.found
    assert (dataset.num_items, dataset.train.height, dataset.test.height) == (1682, *rows)
    assert json.loads(dataset.items["metadata"][0]) == {
        "release_year": "1995",
        "class": ["Animation", "Children's", "Comedy"],
    }


def test_only_good_ratings_count_where_the_recipe_says_so() -> None:
    config = RecBoleConfig(folder=DATA / "ml-100k", min_rating=4)
    dataset, _ = build_dataset(ItemsConfig(source="recbole", recbole=config))
    assert dataset.popularity.sum() < 55_375
    # 55,375 ratings of 4 and 5; every user but those with one or two gives a test row.
    assert dataset.test.height == 942


@pytest.mark.parametrize("name", ["beauty", "sports", "ml-100k"])
def test_the_recipes_of_public_data_read_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[3]
    monkeypatch.chdir(root)
    recipe = load_recipe(root / "training" / "recipes" / f"{name}.toml")
    dataset, bad_rows = build_dataset(recipe.items)
    assert dataset.num_items == {"beauty": 12101, "sports": 18357, "ml-100k": 1682}[name]
    assert set(bad_rows.counts) <= {"item without text"}
    assert recipe.evaluation.sasrec.seeds
