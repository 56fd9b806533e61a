"""Next-token loss of a causal LM, computed only where a label stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training.learning.packed import PackedBatch, PackedForward, can_pack

_MAX_LOGITS_BYTES = 256 * 2**20


class NextTokenLoss(nn.Module):
    """Sum of the negative log-likelihoods of all labelled tokens.

    Hidden states are computed everywhere, logits only for positions whose next token is labelled:
    with answer-only loss and a large vocabulary the logits would cost more than the model.

    Args:
        model: a Hugging Face causal LM with `.model` and `.lm_head`.
        label_smoothing: share of the target's weight spread evenly over the codes of its level.
        levels: (first_token_id, codebook_size) of every level; needed for smoothing only.
            Tokens outside every level are not smoothed.
        is_packed: compute without padding where that is possible; False calls every block as a module,
            which `sharding.shard` needs.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        label_smoothing: float = 0.0,
        levels: Sequence[tuple[int, int]] = (),
        is_packed: bool = True,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self._packed = PackedForward(model) if is_packed and can_pack(model) else None
        self._label_smoothing = label_smoothing
        self._levels = tuple(levels)

    def forward(
        self, ids: torch.Tensor, is_label: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Shapes: (b, T) int64, (b, T) bool, (b,) int64 -> scalar, float32, nats. See `MicroBatch`."""
        if self._packed is not None:
            batch = PackedBatch(ids, is_label, lengths)
            states, targets = batch.labelled(self._packed(batch))
        else:
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            states, targets = labelled(hidden, ids, is_label)
        return in_chunks(self._loss, states, targets, self.model.config.vocab_size)

    def _loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.model.lm_head(states).float()
        nll = F.cross_entropy(logits, targets, reduction="sum")
        if not self._label_smoothing:
            return nll
        normalizer = logits.logsumexp(-1)
        for first, size in self._levels:
            here = (targets >= first) & (targets < first + size)
            flat = normalizer[here] - logits[here, first : first + size].mean(-1)
            sharp = normalizer[here] - logits[here].gather(1, targets[here, None])[:, 0]
            nll = nll + self._label_smoothing * (flat - sharp).sum()
        return nll


def labelled(
    hidden: torch.Tensor, ids: torch.Tensor, is_label: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """States that predict a labelled token, and those tokens.

    Shape: (b, T, D), (b, T), (b, T) -> (n, D), (n,).
    """
    is_next_labelled = is_label[:, 1:]
    return hidden[:, :-1][is_next_labelled], ids[:, 1:][is_next_labelled]


def in_chunks(loss: Any, states: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Sum of `loss` over chunks, each recomputed in the backward pass where the logits would not fit.

    Args:
        loss: (states (m, D), targets (m,)) -> scalar sum.
        states: Shape: (n, D). n may be 0.
        targets: Shape: (n,).
        vocab_size: logits per state.
    """
    rows_at_once = max(1, _MAX_LOGITS_BYTES // (4 * vocab_size))
    if len(states) <= rows_at_once:
        return loss(states, targets)
    total = states.new_zeros((), dtype=torch.float32)
    for chunk, chunk_targets in zip(states.split(rows_at_once), targets.split(rows_at_once), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(loss, chunk, chunk_targets, use_reentrant=False)
        else:
            total = total + loss(chunk, chunk_targets)
    return total
