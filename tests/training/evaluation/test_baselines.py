"""Baselines equal their plain definition, and the figures measured before on real data."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.baselines import (
    ItemCF,
    ItemCFSettings,
    by_popularity,
    count_targets,
    popularity_lists,
    spread,
    tune_itemcf,
)
from training.evaluation.metrics import ranking_metrics, ranks_of
from training.items.build import build_dataset
from training.items.config import ItemsConfig, MiniOneRecConfig, SequencesConfig
from training.items.dataset import Dataset

DATA = Path(__file__).parents[3].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets do not lie in ../shared/data")


def plain_scores(dataset: Dataset, history: list[int], settings: ItemCFSettings) -> list[float]:
    """The definition, one pair at a time."""
    related: dict[tuple[int, int], float] = defaultdict(float)
    for items in dataset.train_sequences["items"].to_list():
        for at, item in enumerate(items):
            for distance in range(1, settings.window + 1):
                if at + distance < len(items):
                    other = items[at + distance]
                    if item != other or settings.self_pairs:
                        related[item, other] += 1 / distance
                        related[other, item] += settings.backward / distance
    scores = [0.0] * dataset.num_items
    for age, item in enumerate(reversed(history[-settings.history_limit :])):
        for other in range(dataset.num_items):
            damped = related[item, other] / (dataset.popularity[other] + 1) ** settings.damping
            scores[other] += settings.recency**age * damped
    return scores


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 100),
    window=st.integers(1, 4),
    limit=st.integers(1, 5),
    backward=st.sampled_from([0.0, 0.5, 1.0]),
    damping=st.sampled_from([0.0, 0.5]),
    self_pairs=st.booleans(),
)
def test_itemcf_is_its_definition(
    world_maker: Any, seed: int, self_pairs: bool, window: int, limit: int, backward: float, damping: float
) -> None:
    dataset = world_maker(seed, num_users=10).dataset
    chosen = ItemCFSettings(
        window=window, history_limit=limit, self_pairs=self_pairs, backward=backward, damping=damping
    )
    lists = ItemCF(dataset, chosen).recommend(dataset.valid["history"], dataset.num_items)
    place = {int(item): at for at, item in enumerate(by_popularity(dataset.popularity))}
    for history, ranked in zip(dataset.valid["history"].to_list(), lists.tolist(), strict=True):
        scores = plain_scores(dataset, history, chosen)
        expected = sorted(range(dataset.num_items), key=lambda item: (-round(scores[item], 9), place[item]))
        assert ranked == expected


def test_an_empty_or_unknown_history_gets_the_popular_items(world: Any) -> None:
    dataset = world.dataset
    histories = pl.Series("history", [[], [3]], dtype=pl.List(pl.Int32))
    lists = ItemCF(dataset).recommend(histories, 5)
    assert lists.shape == (2, 5)
    assert lists[0].tolist() == by_popularity(dataset.popularity)[:5].tolist()


def test_no_more_places_than_items(world: Any) -> None:
    dataset = world.dataset
    assert ItemCF(dataset).recommend(dataset.valid["history"], 500).shape[1] == dataset.num_items
    assert popularity_lists(count_targets(dataset), 3, 500).shape == (3, dataset.num_items)


def test_rows_are_spread_evenly_and_always_the_same() -> None:
    rows = pl.DataFrame({"n": list(range(10))})
    assert spread(rows, 4)["n"].to_list() == [0, 2, 5, 7]
    assert spread(rows, 10).equals(rows)
    assert spread(rows, None).equals(rows)


def test_tuning_does_not_read_test_rows(world: Any) -> None:
    dataset = world.dataset
    blind = Dataset(
        items=dataset.items,
        train=dataset.train,
        valid=dataset.valid,
        train_sequences=dataset.train_sequences,
        popularity=dataset.popularity,
        history_limit=dataset.history_limit,
    )
    assert tune_itemcf(blind, max_rows=20) == tune_itemcf(dataset, max_rows=20)


@needs_data
def test_industrial_floor() -> None:
    """training-anchors 3.4: popularity .0567 / .0411, ItemCF .1105 / .0792 (HR@10 / NDCG@10)."""
    config = MiniOneRecConfig(folder=DATA / "minionerec_industrial")
    dataset, _ = build_dataset(ItemsConfig(source="minionerec", minionerec=config))
    targets = dataset.test["target"].to_numpy()
    popular = ranking_metrics(ranks_of(popularity_lists(count_targets(dataset), len(targets), 50), targets))
    assert round(popular["HR@10"], 4) == 0.0567
    assert round(popular["NDCG@10"], 4) == 0.0411
    related = ranking_metrics(ranks_of(ItemCF(dataset).recommend(dataset.test["history"], 50), targets))
    assert related["HR@10"] == pytest.approx(0.1105, abs=0.001)
    assert related["NDCG@10"] == pytest.approx(0.0792, abs=0.001)
    # Bought again: the floor that a model without this knowledge does not see.
    tuned = tune_itemcf(dataset, max_rows=500)
    assert tuned.self_pairs


@needs_data
@pytest.mark.slow
def test_beauty_floor() -> None:
    """training-anchors 3.4: ItemCF HR@1 .0183, HR@5 .0454, HR@10 .0668, NDCG@10 .0391, HR@50 .1355."""
    folder = DATA / "amazon_beauty"
    config = SequencesConfig(
        sequences=folder / "Beauty.txt",
        item_text=folder / "idgenrec_item_text_ids.txt",
        id_map=folder / "datamaps.json.gz",
    )
    dataset, _ = build_dataset(ItemsConfig(source="sequences", sequences=config, on_bad_row="skip"))
    targets = dataset.test["target"].to_numpy()
    metrics = ranking_metrics(ranks_of(ItemCF(dataset).recommend(dataset.test["history"], 50), targets))
    figures = {"HR@1": 0.0183, "HR@5": 0.0454, "HR@10": 0.0668, "NDCG@10": 0.0391, "HR@50": 0.1355}
    for name, figure in figures.items():
        assert metrics[name] == pytest.approx(figure, abs=0.0002), name
