"""SASRec with full softmax: it learns what follows what, never looks ahead, and resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from training.evaluation.config import SasRecConfig
from training.evaluation.metrics import ranks_of
from training.evaluation.sasrec import SasRec, retrain_sasrec, sequence_examples, train_sasrec
from training.evaluation.slices import slices_of
from training.items.dataset import ITEM_COLUMNS, ROW_SCHEMA, Dataset
from training.learning.loop import Loop

SMALL = SasRecConfig(
    hidden_size=32, num_blocks=1, epochs=20, batch_size=16, dropout=0.0, learning_rate=1e-2, patience=20
)
NUM_ITEMS = 20


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """After items n, n + 1 comes n + 2 forwards; after n, n - 1 comes n - 2: one item is not enough."""
    items = pl.DataFrame({name: [f"{name} {n:02}" for n in range(NUM_ITEMS)] for name in ITEM_COLUMNS})
    rows: list[tuple[str, list[int], int]] = []
    for user in range(120):
        step = 1 if user % 2 else -1
        walk = [(user * 7 + step * at) % NUM_ITEMS for at in range(7)]
        rows += [(f"u{user}", walk[max(0, at - 4) : at], walk[at]) for at in range(1, 7)]
    frame = pl.DataFrame(rows, schema=ROW_SCHEMA, orient="row")
    part = pl.int_range(pl.len()).over("user_id")
    train, valid, test = (frame.filter(chosen) for chosen in (part < 4, part == 4, part == 5))
    return Dataset.make(items, train, valid, test, history_limit=4, name="walks")


def test_it_learns_the_order_of_items(dataset: Dataset, tmp_path: Path) -> None:
    baseline, notes = train_sasrec(dataset, SMALL, seed=0, directory=tmp_path)
    test = dataset.test
    ranks = ranks_of(baseline.recommend(test["history"], 5), test["target"].to_numpy())
    assert (ranks == 1).mean() > 0.95
    assert notes["best_NDCG@10"] > 0.95


def test_retraining_on_the_same_rows_gives_the_chosen_lists(dataset: Dataset, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"epochs": 4, "patience": 1, "dropout": 0.2})
    chosen, notes = train_sasrec(dataset, config, seed=1, directory=tmp_path / "chosen")
    epochs = next(note["epoch"] for note in notes["evaluations"] if note["step"] == notes["best_step"])
    again = retrain_sasrec(dataset, config, epochs=epochs, seed=1, directory=tmp_path / "again")
    histories = dataset.valid["history"]
    assert (again.recommend(histories, 10) == chosen.recommend(histories, 10)).all()


def test_an_item_sees_nothing_of_what_comes_after_it() -> None:
    torch.manual_seed(0)
    model = SasRec(NUM_ITEMS, 4, SMALL).eval()
    one, other = torch.tensor([[3, 5, 7, 9]]), torch.tensor([[3, 5, 8, 0]])
    assert model.hidden(one)[:, :2].equal(model.hidden(other)[:, :2])
    assert not model.hidden(one)[:, 2:].allclose(model.hidden(other)[:, 2:])


def test_the_loss_is_the_cross_entropy_over_all_items() -> None:
    torch.manual_seed(0)
    model = SasRec(NUM_ITEMS, 4, SMALL).eval()
    tokens = torch.tensor([[3, 5, 7, 0], [2, 4, 6, 8]])
    is_label = torch.tensor([[False, False, True, False], [False, True, True, True]])
    expected = 0.0
    for row, at in torch.nonzero(is_label).tolist():
        state = model.hidden(tokens[row : row + 1, :at])[0, -1]
        logits = model.items.weight[1:] @ state
        expected += float((logits.logsumexp(0) - logits[tokens[row, at] - 1]).detach())
    assert float(model(tokens, is_label, torch.tensor([3, 4]))) == pytest.approx(expected, rel=1e-5)


def test_every_target_is_learned_once() -> None:
    examples = sequence_examples([list(range(13)), [4, 2]], max_items=4)
    learned = examples.tokens[examples.is_label] - 1
    assert sorted(learned.tolist()) == sorted([*range(1, 13), 2])
    assert examples.lengths.max() == 5


def test_lists_hold_every_item_once(dataset: Dataset, tmp_path: Path) -> None:
    baseline, _ = train_sasrec(dataset, SMALL.model_copy(update={"epochs": 1}), seed=0, directory=tmp_path)
    lists = baseline.recommend(dataset.valid["history"], 50)
    assert (np.sort(lists, axis=1) == np.arange(NUM_ITEMS)).all()


def test_killed_and_resumed_gives_the_same_lists(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.model_copy(update={"epochs": 3, "dropout": 0.2})

    def run(directory: Path) -> np.ndarray:
        return train_sasrec(dataset, config, seed=0, directory=directory)[0].recommend(
            dataset.valid["history"], 10
        )

    expected = run(tmp_path / "whole")
    take_step = Loop._train_step

    def killed_before(self: Any, step: int) -> float:
        if step == 10:
            self._save()
            raise KeyboardInterrupt
        return take_step(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "_train_step", killed_before)
        run(tmp_path / "killed")
    assert (run(tmp_path / "killed") == expected).all()


def test_slices_go_by_the_training_rows_alone(dataset: Dataset) -> None:
    popularity = np.array([0, 9, 8, 7, 6, *([1] * 15)])
    found = slices_of(replace(dataset, popularity=popularity), np.array([0, 1, 4, 5, 19, 0]))
    assert found["cold"].tolist() == [True, False, False, False, False, True]
    assert found["head"].tolist() == [False, True, True, False, False, False]
    assert found["tail"].tolist() == [False, False, False, True, True, False]
    assert set(slices_of(replace(dataset, popularity=popularity), np.array([7]))) == {"tail"}
