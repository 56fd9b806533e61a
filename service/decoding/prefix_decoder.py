"""Score SID codes with a transformer that keeps ONE copy of every prompt's keys and values.

After the prompt has been read once, every beam step runs R * B single-token rows. Their queries
attend to the request's shared prompt cache and to their own few suffix tokens; only the suffix
(at most L - 1 tokens) is gathered when beams are reordered. Of the logits only the SID columns of
the next level are kept, plus the log-sum-exp over the full vocabulary.

The transformer's modules come in behind `LayerOps`, so that the same code runs on Hugging Face
modules (torch engine) and on vLLM's (inside its worker).

Shapes: R requests, B beams, T padded prompt tokens, D hidden width, H query heads, G key/value
heads, d head width, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class LayerOps(Protocol):
    """What the decoder needs of a pre-norm decoder-only transformer (Llama, Qwen2, Qwen3)."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Shape: (n,) int64 -> (n, D)."""
        ...

    def qkv(
        self, layer: int, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input norm, projections, query/key norms and rotary embedding.

        Shape: (n, D), (n,) -> (n, H, d), (n, G, d), (n, G, d).
        """
        ...

    def finish_layer(self, layer: int, hidden: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Output projection, residuals and MLP. Shape: (n, D), (n, H * d) -> (n, D)."""
        ...

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """Shape: (n, D) -> (n, D)."""
        ...

    def sid_logprobs(self, normed: torch.Tensor, first_token_id: int, codebook_size: int) -> torch.Tensor:
        """Columns [first, first + K) of the log-softmax over the full vocabulary.

        Shape: (n, D) -> (n, K), float32.
        """
        ...


@dataclass
class PromptCache:
    """Keys and values of the prompts, padded on the right.

    Attributes:
        keys, values: one tensor per layer. Shape: (R, G, T, d).
        lengths: prompt tokens per request. Shape: (R,), int64.
        last_hidden: final-normed hidden state of every prompt's last token. Shape: (R, D).
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    lengths: torch.Tensor
    last_hidden: torch.Tensor


class SharedPrefixScorer:
    """A `Scorer` (see beam_search.py) over a prompt cache.

    Args:
        ops: the transformer.
        levels: (first_token_id, codebook_size) of every level.
        cache: what the prompts left behind.
    """

    def __init__(self, ops: LayerOps, levels: Sequence[tuple[int, int]], cache: PromptCache) -> None:
        self._ops = ops
        self._levels = levels
        self._cache = cache
        self._suffix_keys: list[torch.Tensor] = []
        self._suffix_values: list[torch.Tensor] = []
        lengths, longest = cache.lengths, cache.keys[0].shape[2]
        padding = torch.arange(longest, device=lengths.device) >= lengths[:, None]
        is_padded = lengths.device.type != "cpu" or bool(padding.any())
        bias = torch.zeros(padding.shape, dtype=cache.keys[0].dtype, device=lengths.device)
        self._padding_bias = bias.masked_fill_(padding, float("-inf"))[:, None, None] if is_padded else None

    def first(self) -> torch.Tensor:
        """Level 0 from the prompts' last hidden states. Shape: (R, 1, K_0), float32."""
        return self._ops.sid_logprobs(self._cache.last_hidden, *self._levels[0])[:, None]

    def advance(self, parents: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        """One forward pass of all beams. Shapes as in `Scorer.advance`."""
        ops = self._ops
        num_requests, num_beams = codes.shape
        hidden = ops.embed((codes + self._levels[level][0]).flatten())
        # contiguous: vLLM 0.32.0's rotary kernel crashes on a stride-0 view.
        positions = (self._cache.lengths[:, None] + level).expand(-1, num_beams).flatten().contiguous()
        for layer in range(ops.num_layers):
            query, key, value = ops.qkv(layer, hidden, positions)
            key = key.view(num_requests, num_beams, 1, ops.num_kv_heads, ops.head_dim)
            value = value.view_as(key)
            if level:
                key = torch.cat([_reorder(self._suffix_keys[layer], parents), key], dim=2)
                value = torch.cat([_reorder(self._suffix_values[layer], parents), value], dim=2)
                self._suffix_keys[layer], self._suffix_values[layer] = key, value
            else:
                self._suffix_keys.append(key)
                self._suffix_values.append(value)
            attention = self._attend(layer, query.view(num_requests, num_beams, *query.shape[1:]))
            hidden = ops.finish_layer(layer, hidden, attention)
        scores = ops.sid_logprobs(ops.final_norm(hidden), *self._levels[level + 1])
        return scores.view(num_requests, num_beams, -1)

    def _attend(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        """Attention over [shared prompt ; own suffix]. Shape: (R, B, H, d) -> (R * B, H * d)."""
        num_requests, num_beams, num_heads, head_dim = query.shape
        groups = self._ops.num_kv_heads
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        suffix_keys, suffix_values = self._suffix_keys[layer], self._suffix_values[layer]
        # (R, G, B * H/G, d): all beams of a request are rows of one matrix against its prompt.
        scaled = query.view(num_requests, num_beams, groups, -1, head_dim) * head_dim**-0.5
        scaled = scaled.permute(0, 2, 1, 3, 4)
        rows = scaled.reshape(num_requests, groups, -1, head_dim)
        prompt_scores = rows @ keys.transpose(2, 3)
        if self._padding_bias is not None:
            prompt_scores = prompt_scores + self._padding_bias
        suffix_scores = torch.einsum("rgbhd,rbsgd->rgbhs", scaled, suffix_keys)
        num_prompt = keys.shape[2]
        scores = torch.cat([prompt_scores, suffix_scores.flatten(2, 3)], dim=-1)
        weights = scores.float().softmax(-1).to(query.dtype)
        out = (weights[..., :num_prompt] @ values).view(scaled.shape)
        suffix_weights = weights[..., num_prompt:].view(suffix_scores.shape)
        out = out + torch.einsum("rgbhs,rbsgd->rgbhd", suffix_weights, suffix_values)
        return out.permute(0, 2, 1, 3, 4).reshape(num_requests * num_beams, num_heads * head_dim)


def _reorder(suffix: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """Take every beam's suffix from its parent. Shape: (R, B_old, S, G, d) -> (R, B, S, G, d)."""
    requests = torch.arange(len(suffix), device=suffix.device)[:, None]
    return suffix[requests, parents]


def chunked_logprobs(
    normed: torch.Tensor, weight: torch.Tensor, first: int, count: int, *, max_bytes: int = 64 * 2**20
) -> torch.Tensor:
    """SID columns of log_softmax(normed @ weight.T) without keeping full logits.

    Args:
        normed: Shape: (n, D).
        weight: output embedding. Shape: (V, D).
        first, count: columns [first, first + count) to return.
        max_bytes: bound on the float32 logits alive at once.

    Returns:
        Shape: (n, count), float32.
    """
    rows_at_once = max(1, max_bytes // (4 * weight.shape[0]))
    pieces = []
    for chunk in normed.split(rows_at_once):
        logits = torch.nn.functional.linear(chunk, weight).float()
        pieces.append(logits[:, first : first + count] - logits.logsumexp(-1, keepdim=True))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
