"""How good the model is right now, on validation rows, decoded as the service decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from service.bundle import Level, PromptTemplate
from service.decoding.trie import Trie
from service.engine.torch_engine import TorchDecoder
from training.finetuning.examples import row_examples
from training.learning.batches import MicroBatch, in_order
from training.learning.objective import NextTokenLoss

_CUTOFF = 10


@dataclass(frozen=True, eq=False)
class Validation:
    """Validation rows, ready to be decoded again and again.

    Attributes:
        prompts: token ids of every row's prompt.
        target_rows: row of every target in SID order. Shape: (V,), int64.
        trie: over all items in SID order.
        levels: token ranges.
        beam_width: beams kept.
        batches: the same rows with their answers, for the loss.
    """

    prompts: list[list[int]]
    target_rows: np.ndarray
    trie: Trie
    levels: tuple[Level, ...]
    beam_width: int
    batches: list[MicroBatch]

    def measure(self, model: nn.Module, precision: Any) -> dict[str, float]:
        """NDCG@10 and HR@10 (item level) and the mean loss per SID token.

        Args:
            model: in eval mode.
            precision: context manager for the compute precision of the loss.
        """
        ranks = self.ranks(model)
        is_hit = ranks < _CUTOFF
        gains = np.where(is_hit, 1 / np.log2(ranks + 2.0), 0.0)
        return {
            "ndcg@10": float(gains.mean()),
            "hr@10": float(is_hit.mean()),
            "valid_loss": self._loss(model, precision),
        }

    def ranks(self, model: nn.Module) -> np.ndarray:
        """Rank of every target from 0; a large number where the beams miss it. Shape: (V,)."""
        decoder = TorchDecoder(model, self.trie, self.levels)
        rows_at_once = max(1, 2048 // self.beam_width)
        ranks = np.full(len(self.prompts), np.iinfo(np.int32).max, dtype=np.int64)
        for start in range(0, len(self.prompts), rows_at_once):
            prompts = self.prompts[start : start + rows_at_once]
            for offset, beams in enumerate(decoder.decode(prompts, [self.beam_width] * len(prompts))):
                first, end = np.asarray(beams.first_row), np.asarray(beams.end_row)
                target = self.target_rows[start + offset]
                found = np.flatnonzero((first <= target) & (target < end))
                if len(found):
                    above = (end - first)[: found[0]].sum()
                    ranks[start + offset] = above + target - first[found[0]]
        return ranks

    @torch.no_grad()
    def _loss(self, model: nn.Module, precision: Any) -> float:
        objective = NextTokenLoss(model)
        device = next(model.parameters()).device
        total, count = 0.0, 0
        for micro in self.batches:
            placed = micro.to(device)
            with precision:
                total += float(objective(placed.ids, placed.is_label))
            count += int(micro.is_label.sum())
        return total / max(1, count)


def make_validation(
    rows: pl.DataFrame,
    items: pl.DataFrame,
    popularity: np.ndarray,
    codes: np.ndarray,
    *,
    prompt: PromptTemplate,
    levels: tuple[Level, ...],
    max_rows: int,
    beam_width: int,
) -> Validation:
    """Prepare validation rows, evenly spread if there are more than `max_rows`.

    Args:
        rows: columns history, target.
        items: column item_id. N rows.
        popularity: Shape: (N,).
        codes: Shape: (N, L).
    """
    if rows.height > max_rows:
        rows = rows[np.linspace(0, rows.height - 1, max_rows).round().astype(int).tolist()]
    sid_tokens = codes + np.asarray([level.first_token_id for level in levels])
    ids = items["item_id"].to_numpy()
    order = np.lexsort((ids, -popularity, *codes.T[::-1]))
    row_of = np.empty(len(order), dtype=np.int64)
    row_of[order] = np.arange(len(order))
    trie = Trie.build(codes[order], tuple(level.codebook_size for level in levels))
    targets = rows["target"].to_numpy()
    return Validation(
        prompts=[prompt.token_ids(sid_tokens[history]) for history in rows["history"].to_list()],
        target_rows=row_of[targets],
        trie=trie,
        levels=levels,
        beam_width=beam_width,
        batches=in_order(row_examples(rows["history"], targets.tolist(), sid_tokens, prompt), 4096),
    )
