from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from service.bundle import PromptTemplate
from training.base_model.config import MadeConfig
from training.base_model.made import make_tokenizer, make_untrained
from training.finetuning.config import FinetuningConfig
from training.finetuning.examples import sequence_examples
from training.finetuning.train import Material, finetune, moments, retrain
from training.finetuning.validation import ValidationProbe
from training.grounding.vocabulary import Vocabulary, extend_vocabulary
from training.items.dataset import ITEM_COLUMNS, ROW_SCHEMA, Dataset
from training.learning import loop as loop_module
from training.learning.examples import Examples
from training.learning.objective import NextTokenLoss

CONFIG = FinetuningConfig(
    epochs=3, batch_size=10, learning_rate=5e-3, validation_rows=12, validation_beam_width=10,
    evaluate_every_epochs=1, average_decay=0.8, precision="fp32", residual_dropout=0.05,
    embedding_dropout=0.05,
)  # fmt: skip
PROMPT = PromptTemplate(style="sequence", history_limit=4, prefix_token_ids=(0,))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Sixteen items in a ring: after item n comes n + 1."""
    items = pl.DataFrame({name: [f"{name} {n:02}" for n in range(16)] for name in ITEM_COLUMNS})
    rows = [(str(n), [(n + k) % 16 for k in range(1 + n % 4)], (n + 1 + n % 4) % 16) for n in range(48)]
    frame = pl.DataFrame(rows, schema=ROW_SCHEMA, orient="row")
    return Dataset.make(items, frame, frame[:16], frame[16:20], history_limit=4)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.stack([np.arange(16) // 4, np.arange(16) % 4], axis=1).astype(np.int32)


def make_model() -> tuple[Any, Vocabulary]:
    tokenizer = make_tokenizer(["abc"], 300)
    config = MadeConfig(
        num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=2, head_dim=16, intermediate_size=64,
        max_positions=64, context_tokens=32,
    )  # fmt: skip
    model = make_untrained(config, tokenizer, seed=0)
    vocabulary = extend_vocabulary(model, tokenizer, [("a", 4), ("b", 4)])
    torch.manual_seed(0)
    with torch.no_grad():
        model.get_input_embeddings().weight[vocabulary.first_new_id :].normal_(std=0.02)
    return model, vocabulary


def run(dataset: Dataset, codes: np.ndarray, directory: Path, **changes: Any) -> tuple[Any, dict[str, Any]]:
    config = CONFIG.model_copy(update=changes)
    directory.mkdir(exist_ok=True)
    model, vocabulary = make_model()
    examples = sequence_examples(dataset.train_sequences["items"], vocabulary.tokens_of(codes), PROMPT)
    pairs = Examples.of_answers([([0, 70 + n], vocabulary.tokens_of(codes)[n].tolist()) for n in range(16)])
    notes = finetune(
        model,
        Material(examples, pairs if config.alignment_share else None),
        ValidationProbe(dataset, codes, vocabulary.levels, PROMPT, config),
        config,
        levels=vocabulary.ranges,
        seed=0,
        directory=directory,
    )
    return model, notes


def test_it_learns_and_keeps_the_best(dataset: Dataset, codes: np.ndarray, tmp_path: Path) -> None:
    model, notes = run(dataset, codes, tmp_path, epochs=30, evaluate_every_epochs=5)
    scores = [note["NDCG@10"] for note in notes["evaluations"]]
    assert notes["best_NDCG@10"] == pytest.approx(max(scores), abs=1e-5)
    assert max(scores) > 0.8
    _, vocabulary = make_model()
    probe = ValidationProbe(dataset, codes, vocabulary.levels, PROMPT, CONFIG)
    again = probe.measure(model, torch.autocast("cpu", enabled=False))["NDCG@10"]
    assert again == pytest.approx(notes["best_NDCG@10"])
    assert not model.training


def test_pairs_are_mixed_in_and_learned(dataset: Dataset, codes: np.ndarray, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"epochs": 28, "evaluate_every_epochs": 14, "average_decay": 0.0}
    losses = []
    for share in (0.0, 0.3):
        model, notes = run(dataset, codes, tmp_path / str(share), alignment_share=share, **changes)
        _, vocabulary = make_model()
        ids = torch.tensor([[0, 70 + n, *vocabulary.tokens_of(codes)[n]] for n in range(16)])
        is_label = torch.tensor([[False, False, True, True]]).expand(16, 4)
        losses.append(float(NextTokenLoss(model)(ids, is_label).detach()))
    assert losses[1] < 0.7 * losses[0]
    assert notes["steps_per_epoch"] == pytest.approx(len(dataset.train_sequences) / CONFIG.batch_size)


@pytest.mark.parametrize("patience", [1, 9])
def test_retraining_on_the_same_rows_ends_with_the_chosen_weights(
    dataset: Dataset, codes: np.ndarray, tmp_path: Path, patience: int
) -> None:
    expected, notes = run(dataset, codes, tmp_path / "chosen", epochs=8, patience=patience)
    model, vocabulary = make_model()
    (tmp_path / "again").mkdir()
    again = retrain(
        model,
        Material(sequence_examples(dataset.train_sequences["items"], vocabulary.tokens_of(codes), PROMPT)),
        CONFIG.model_copy(update={"epochs": 8}),
        epochs=notes["best_step"] / notes["steps_per_epoch"],
        levels=vocabulary.ranges,
        seed=0,
        directory=tmp_path / "again",
    )
    assert again["steps"] == notes["best_step"]
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert found.equal(wanted)


@pytest.mark.parametrize(("steps", "num"), [(10, 3), (10, 10), (3, 8), (1, 0), (7, 1)])
def test_validations_are_spread_and_end_with_the_run(steps: int, num: int) -> None:
    found = moments(steps, num)
    assert found[-1] == steps
    assert found == sorted(set(found))
    assert len(found) == min(max(1, num), steps)


def test_it_stops_when_validation_no_longer_gains(
    dataset: Dataset, codes: np.ndarray, tmp_path: Path
) -> None:
    _, notes = run(dataset, codes, tmp_path, epochs=50, learning_rate=1e-9, patience=2, average_decay=0.0)
    assert len(notes["evaluations"]) == 3
    assert notes["best_step"] == notes["evaluations"][0]["step"]


@pytest.mark.parametrize("when", ["in the middle", "right after the best was saved"])
def test_killed_and_resumed_gives_the_same_weights_and_curve(
    dataset: Dataset, codes: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    expected, expected_notes = run(dataset, codes, tmp_path / "whole")
    kill_at = 7 if when == "in the middle" else expected_notes["evaluations"][0]["step"]
    take_step, save = loop_module.Loop._train_step, loop_module.Loop._save

    def killed_before(self: Any, step: int) -> float:
        if step == kill_at and when == "in the middle":
            save(self)
            raise KeyboardInterrupt
        return take_step(self, step)

    def watch(self: Any, loop: Any, step: int, loss: float) -> bool:
        stops = after_step(self, loop, step, loss)
        if step == kill_at and when != "in the middle":
            raise KeyboardInterrupt
        return stops

    from training.learning.best_keeper import BestKeeper

    after_step = BestKeeper.after_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop_module.Loop, "_train_step", killed_before)
        patch.setattr(BestKeeper, "after_step", watch)
        run(dataset, codes, tmp_path / "killed")
    resumed, notes = run(dataset, codes, tmp_path / "killed")
    for (name, one), other in zip(expected.named_parameters(), resumed.named_parameters(), strict=True):
        assert one.equal(other[1]), name
    assert notes == expected_notes
