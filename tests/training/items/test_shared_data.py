"""The real data sets, where they lie beside the repository."""

from pathlib import Path

import pytest

from training.items.build import build_dataset
from training.items.config import ItemsConfig, MiniOneRecConfig, SequencesConfig

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
