"""The demo shop is believable, always the same, and its tastes can be learned from."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np

from training.evaluation.baselines import ItemCF, count_targets, popularity_lists
from training.evaluation.metrics import ranking_metrics, ranks_of
from training.items.bad_rows import BadRows
from training.items.build import build_dataset
from training.items.config import DemoConfig, ItemsConfig, OwnConfig
from training.items.demo.catalogue import make_catalogue
from training.items.demo.shop import make_shop, write_own_files
from training.items.readers import own

# Changes only when somebody changes the shop on purpose; every published demo figure rests on it.
SHOP = "5b2a4d68a91c46b1"


def test_the_shop_is_quick_and_always_the_same() -> None:
    began = time.perf_counter()
    items, events = make_shop(num_users=3000, seed=0)
    assert time.perf_counter() - began < 5
    text = items.to_frame().write_csv() + events.write_csv()
    assert hashlib.sha256(text.encode()).hexdigest().startswith(SHOP)


def test_items_are_about_a_thousand_with_titles_of_their_own() -> None:
    frame = make_catalogue().items.to_frame()
    assert 950 <= frame.height <= 1050
    assert frame["title"].n_unique() == frame["item_id"].n_unique() == frame.height
    assert frame["description"].n_unique() == frame.height
    assert frame["description"].str.len_chars().min() > 60
    for text in frame["metadata"]:
        metadata = json.loads(text)
        assert set(metadata) == {"brand", "category", "price", "in_stock"}
        assert metadata["price"] > 0
    assert 0.9 < np.mean([json.loads(text)["in_stock"] for text in frame["metadata"]]) < 0.97


def test_another_seed_makes_other_users_in_the_same_shop() -> None:
    items, events = make_shop(num_users=20, seed=1)
    assert items.to_frame().equals(make_shop(num_users=20, seed=0)[0].to_frame())
    assert not events.equals(make_shop(num_users=20, seed=0)[1])


def test_more_users_leave_the_first_ones_as_they_are() -> None:
    few, many = make_shop(num_users=20, seed=0)[1], make_shop(num_users=30, seed=0)[1]
    assert many.head(few.height).equals(few)


def test_what_is_planted_shows() -> None:
    """Co-occurrence finds a good part of it, popularity next to nothing."""
    dataset, bad_rows = build_dataset(ItemsConfig(demo=DemoConfig(num_users=2000)))
    assert not bad_rows.found
    targets = dataset.test["target"].to_numpy()
    popular = popularity_lists(count_targets(dataset), len(targets), 10)
    related = ItemCF(dataset).recommend(dataset.test["history"], 10)
    assert ranking_metrics(ranks_of(popular, targets))["HR@10"] < 0.08
    assert 0.4 < ranking_metrics(ranks_of(related, targets))["HR@10"] < 0.7


def test_the_files_it_writes_are_read_back_as_own_data(tmp_path: Path) -> None:
    write_own_files(tmp_path, num_users=50, seed=0)
    config = OwnConfig(items=tmp_path / "items.jsonl", interactions=tmp_path / "interactions.csv")
    items, events = own.read(config, BadRows())
    expected_items, expected_events = make_shop(num_users=50, seed=0)
    assert items.to_frame().equals(expected_items.to_frame())
    assert events.equals(expected_events)
