"""SASRec with full softmax cross-entropy: the neural floor, trained on the same rows.

Source: Kang and McAuley (2018), "Self-attentive sequential recommendation"; with the loss over all
items instead of one sampled negative, which is worth more than most architectures (RecBole's "CE",
and Klenitskiy and Vasilev, 2023, "Turning dross into gold loss").

Shapes: B histories, T items of a history, N items, D width, R rows, M places of a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.evaluation.baselines import spread
from training.evaluation.config import SasRecConfig
from training.evaluation.metrics import ranking_metrics, ranks_of
from training.items.dataset import Dataset
from training.learning.batches import Batches, derive_seed
from training.learning.best_keeper import BestKeeper
from training.learning.examples import Examples
from training.learning.loop import Loop, LoopSettings, LossLog, Watcher
from training.learning.objective import in_chunks
from training.learning.schedule import CosineSchedule
from training.learning.windows import windows

_ROWS_AT_ONCE = 512


class SasRec(nn.Module):
    """A causal transformer over item ids; item n is token n + 1, token 0 is padding on the right.

    Args:
        num_items: N.
        max_items: T, items of a history that are read.
        config: sizes and dropout.
    """

    def __init__(self, num_items: int, max_items: int, config: SasRecConfig) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, config.hidden_size, padding_idx=0)
        self.positions = nn.Embedding(max_items, config.hidden_size)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.hidden_size)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def hidden(self, tokens: Tensor) -> Tensor:
        """What is known after every item. Shape: (B, T) -> (B, T, D)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        states = self.drop(self.items(tokens) * self.items.embedding_dim**0.5 + self.positions(places))
        for block in self.blocks:
            states = block(states)
        return self.norm(states)

    def scores(self, states: Tensor) -> Tensor:
        """Logit of every item. Shape: (..., D) -> (..., N)."""
        return F.linear(states, self.items.weight[1:])

    def forward(self, tokens: Tensor, is_label: Tensor, lengths: Tensor) -> Tensor:
        """Sum of the cross-entropies over all N items.

        Args:
            tokens: item + 1, 0 on the right. Shape: (B, T), int64.
            is_label: what is to be predicted. Shape: (B, T), bool.
            lengths: real tokens, shape (B,); the padding that they leave is never labelled.
        """
        is_next_labelled = is_label[:, 1:]
        states = self.hidden(tokens[:, :-1])[is_next_labelled]
        targets = tokens[:, 1:][is_next_labelled] - 1
        return in_chunks(self._loss, states, targets, len(self.items.weight))

    def _loss(self, states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.scores(states).float(), targets, reduction="sum")


class _Block(nn.Module):
    """Self-attention and a feed-forward layer, normalized before each."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self._num_heads, self._dropout = config.num_heads, config.dropout
        self.norms = nn.ModuleList((nn.LayerNorm(width), nn.LayerNorm(width)))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, states: Tensor) -> Tensor:
        """Shape: (B, T, D) -> (B, T, D)."""
        batch, length, width = states.shape
        qkv = self.qkv(self.norms[0](states)).view(batch, length, 3, self._num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self._dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        states = states + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return states + self.drop(self.down(self.drop(F.gelu(self.up(self.norms[1](states))))))


class SasRecBaseline:
    """A trained SASRec that ranks all items.

    Args:
        model: the network.
        max_items: items of a history that it reads.
    """

    def __init__(self, model: SasRec, max_items: int) -> None:
        self.model = model
        self._max_items = max_items

    @torch.inference_mode()
    def recommend(self, histories: pl.Series, num_places: int) -> np.ndarray:
        """Item indices, best first; items of the history may come again.

        Args:
            histories: lists of item indices, oldest first. R entries, none of them empty.
            num_places: M.

        Returns:
            Shape: (R, min(M, N)), int64.
        """
        num_places = min(num_places, self.model.items.num_embeddings - 1)
        parts = [self._best(chunk, num_places) for chunk in self._chunks(histories)]
        return np.concatenate(parts) if parts else np.empty((0, num_places), dtype=np.int64)

    def _chunks(self, histories: pl.Series) -> Iterator[list[list[int]]]:
        for at in range(0, len(histories), _ROWS_AT_ONCE):
            yield histories[at : at + _ROWS_AT_ONCE].list.tail(self._max_items).to_list()

    def _best(self, histories: list[list[int]], num_places: int) -> np.ndarray:
        lengths = [len(history) for history in histories]
        tokens = torch.zeros(len(histories), max(lengths), dtype=torch.int64)
        for row, history in enumerate(histories):
            tokens[row, : len(history)] = torch.tensor(history) + 1
        device = self.model.items.weight.device
        states = self.model.hidden(tokens.to(device))
        last = states[torch.arange(len(histories)), torch.tensor(lengths) - 1]
        return self.model.scores(last).topk(num_places, dim=1).indices.cpu().numpy()


def train_sasrec(
    dataset: Dataset, config: SasRecConfig, *, seed: int, directory: Path
) -> tuple[SasRecBaseline, dict[str, Any]]:
    """Train on the training sequences, keep the weights with the best validation NDCG@10.

    Args:
        dataset: its training sequences are learned, its validation rows choose.
        config: how.
        seed: of weights, order and dropout.
        directory: for checkpoints; a killed run goes on from there.

    Returns:
        The baseline, and the validations' notes.
    """
    baseline = _untrained(dataset, config, seed)
    examples = sequence_examples(dataset.train_sequences["items"].to_list(), dataset.history_limit)
    steps_per_epoch = _steps_per_epoch(examples, config)
    steps = steps_per_epoch * config.epochs
    rows = spread(dataset.valid, config.validation_rows)

    def validate() -> dict[str, float]:
        ranks = ranks_of(baseline.recommend(rows["history"], 50), rows["target"].to_numpy())
        return ranking_metrics(ranks, (10,))

    keeper = BestKeeper(
        baseline.model,
        validate,
        moments=[*range(steps_per_epoch, steps, steps_per_epoch), steps],
        steps_per_epoch=steps_per_epoch,
        patience=config.patience,
        best_file=directory / "best.st",
    )
    _loop(baseline.model, examples, config, seed=seed, directory=directory, watcher=keeper).run()
    keeper.restore_best(baseline.model)
    baseline.model.eval()
    return baseline, keeper.state


def retrain_sasrec(
    dataset: Dataset, config: SasRecConfig, *, epochs: float, seed: int, directory: Path
) -> SasRecBaseline:
    """Train for passes that were chosen before, on the same schedule; nothing is validated.

    Args:
        dataset: its training sequences are learned.
        config, seed, directory: see `train_sasrec`.
        epochs: passes after which to stop.
    """
    baseline = _untrained(dataset, config, seed)
    examples = sequence_examples(dataset.train_sequences["items"].to_list(), dataset.history_limit)
    steps_per_epoch = _steps_per_epoch(examples, config)
    watcher = LossLog(steps_per_epoch * config.epochs, stop_at=max(1, round(epochs * steps_per_epoch)))
    _loop(baseline.model, examples, config, seed=seed, directory=directory, watcher=watcher).run()
    baseline.model.eval()
    return baseline


def _untrained(dataset: Dataset, config: SasRecConfig, seed: int) -> SasRecBaseline:
    torch.manual_seed(derive_seed(seed, "sasrec", "weights"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SasRec(dataset.num_items, dataset.history_limit, config).to(device)
    return SasRecBaseline(model, dataset.history_limit)


def _steps_per_epoch(examples: Examples, config: SasRecConfig) -> int:
    return max(1, round(len(examples) / config.batch_size))


def _loop(
    model: SasRec, examples: Examples, config: SasRecConfig, *, seed: int, directory: Path, watcher: Watcher
) -> Loop:
    return Loop(
        model.train(),
        dict(model.named_parameters()),
        Batches([(examples, config.batch_size)], seed=derive_seed(seed, "sasrec"), max_tokens=65_536),
        _settings(
            config, _steps_per_epoch(examples, config) * config.epochs, derive_seed(seed, "sasrec", "loop")
        ),
        checkpoint=directory / "checkpoint.st",
        watcher=watcher,
    )


def sequence_examples(sequences: Sequence[list[int]], max_items: int) -> Examples:
    """Windows of sequences as tokens (item + 1); every item but the first of a sequence is learned once."""
    tokens, labels = [], []
    for items in sequences:
        for start, end, counted in windows(len(items), max_items + 1, max(1, max_items // 2)):
            tokens.append(np.asarray(items[start:end], dtype=np.int32) + 1)
            labels.append(np.arange(start, end) >= counted)
    starts = np.concatenate([[0], np.cumsum([len(part) for part in tokens])]).astype(np.int64)
    return Examples(np.concatenate(tokens), np.concatenate(labels), starts)


def _settings(config: SasRecConfig, steps: int, seed: int) -> LoopSettings:
    schedule = CosineSchedule(
        config.learning_rate, 0.05 * config.learning_rate, warmup_steps=steps // 50, steps=steps
    )
    return LoopSettings(
        schedule=schedule,
        seed=seed,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        precision="fp32",
        title="SASRec",
    )
