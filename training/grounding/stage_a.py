"""Stage A: train the rows of the SID tokens and nothing else.

The new rows are one small trainable tensor per matrix. Text tokens are read from the frozen matrix,
SID tokens from the small tensor, and logits are computed in the same two parts: no gradient or
optimizer state of the full matrix ever exists, so frozen rows cannot drift.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from training.grounding.config import StageAConfig
from training.grounding.vocabulary import Vocabulary, read_new_rows, token_matrices, write_new_rows
from training.learning.batches import Batches, derive_seed
from training.learning.examples import Examples
from training.learning.loop import Loop, LoopSettings
from training.learning.objective import in_chunks, labelled
from training.learning.packed import PackedBatch, PackedForward, can_pack
from training.learning.precision import choose_attention
from training.learning.schedule import CosineSchedule


class NewRowsLoss(nn.Module):
    """Next-token loss of a frozen model, as a function of the new rows alone.

    Args:
        model: Hugging Face causal LM whose new rows hold the starting values; it is frozen.
        vocabulary: where the new rows begin.
    """

    def __init__(self, model: nn.Module, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False).eval()
        self._packed = PackedForward(model) if can_pack(model) else None
        self._first = vocabulary.first_new_id
        self._frozen = token_matrices(model)
        rows = read_new_rows(model, vocabulary)
        self.rows = nn.ParameterDict({name: nn.Parameter(value) for name, value in rows.items()})

    def forward(
        self, ids: torch.Tensor, is_label: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Shapes: (b, T) int64, (b, T) bool, (b,) -> scalar sum over labels, float32, nats."""
        if self._packed is not None:
            batch = PackedBatch(ids, is_label, lengths)
            states, targets = batch.labelled(self._packed(batch, self._embed(batch.ids)))
        else:
            hidden = self.model.model(inputs_embeds=self._embed(ids), use_cache=False).last_hidden_state
            states, targets = labelled(hidden, ids, is_label)
        return in_chunks(self._loss, states, targets, self.model.config.vocab_size)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Text tokens from the frozen matrix, SID tokens from the trained rows. Shape: (...) -> (..., D)."""
        is_new = ids >= self._first
        text = F.embedding(ids.masked_fill(is_new, 0), self._frozen["input"])
        new = F.embedding((ids - self._first).clamp(min=0), self.rows["input"])
        return torch.where(is_new[..., None], new.to(text.dtype), text)

    def _loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        name = "output" if "output" in self._frozen else "input"
        text = F.linear(states, self._frozen[name][: self._first])
        new = F.linear(states, self.rows[name].to(states.dtype))
        return F.cross_entropy(torch.cat([text, new], dim=-1).float(), targets, reduction="sum")


def run_stage_a(
    model: nn.Module,
    vocabulary: Vocabulary,
    pairs: Examples,
    config: StageAConfig,
    *,
    seed: int,
    checkpoint: Path,
) -> list[Any]:
    """Ground the new rows in place; resumes from `checkpoint`.

    Returns:
        [[step, mean training loss], ...].

    Raises:
        AssertionError: anything but the new rows has changed.
    """
    before = digest_of_frozen(model, vocabulary)
    choose_attention(model, config.precision)
    objective = NewRowsLoss(model, vocabulary)
    settings = LoopSettings(
        schedule=CosineSchedule.of(config, config.steps),
        seed=derive_seed(seed, "grounding", "stage_a"),
        betas=config.betas,
        weight_decay=0.0,
        precision=config.precision,
        title="grounding A",
    )
    batches = Batches([(pairs, config.batch_size)], seed=derive_seed(seed, "grounding", "order"))
    loop = Loop(objective, dict(objective.rows.items()), batches, settings, checkpoint=checkpoint)
    loop.run()
    write_new_rows(model, vocabulary, {name: rows.detach() for name, rows in objective.rows.items()})
    if digest_of_frozen(model, vocabulary) != before:
        raise AssertionError("stage A changed something besides the rows of the SID tokens")
    model.requires_grad_(True)
    return loop.state["losses"]


@torch.no_grad()
def digest_of_frozen(model: nn.Module, vocabulary: Vocabulary) -> str:
    """SHA-256 over every parameter and buffer except the new rows."""
    matrices = {id(matrix) for matrix in token_matrices(model).values()}
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        frozen = tensor[: vocabulary.first_new_id] if id(tensor) in matrices else tensor
        digest.update(name.encode())
        digest.update(frozen.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
