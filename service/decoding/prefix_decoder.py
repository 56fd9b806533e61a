"""Score SID codes with a transformer that keeps ONE copy of every prompt's keys and values.

After the prompt has been read once, every beam step runs R * B single-token rows. Their queries
attend to the request's shared prompt cache and to their own few suffix tokens (prefix_attention.py);
only the suffix (at most L - 1 tokens) is gathered when beams are reordered. Of the logits only the
SID columns of the next level are kept, plus the log-sum-exp over the full vocabulary.

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

from service.decoding.prefix_attention import add_suffix, attend_prompt, padding_bias


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
        """Output projection, residuals and MLP; may write into `hidden`, which is of no use after.

        Shape: (n, D), (n, H * d) -> (n, D).
        """
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
        self._bias = padding_bias(cache.lengths, cache.keys[0].shape[2], cache.keys[0].dtype)
        # Keys (0) and values (1) of the tokens each beam has written. Shape: (layers, 2, R * B, S, G, d).
        self._suffix = torch.empty(0)

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
        self._suffix = self._extended_suffix(parents, level, hidden)
        for layer in range(ops.num_layers):
            query, key, value = ops.qkv(layer, hidden, positions)
            keys, values = self._suffix[layer]
            keys[:, level], values[:, level] = key, value
            prompt = attend_prompt(
                query.view(num_requests, num_beams, *query.shape[1:]),
                self._cache.keys[layer],
                self._cache.values[layer],
                self._bias,
            )
            attention = add_suffix(query, keys, values, *prompt)
            hidden = ops.finish_layer(layer, hidden, attention.flatten(1))
        scores = ops.sid_logprobs(ops.final_norm(hidden), *self._levels[level + 1])
        return scores.view(num_requests, num_beams, -1)

    def _extended_suffix(self, parents: torch.Tensor, level: int, hidden: torch.Tensor) -> torch.Tensor:
        """Every beam's suffix taken from its parent, all layers at once, with room for one more token."""
        ops = self._ops
        shape = (ops.num_layers, 2, parents.numel(), level + 1, ops.num_kv_heads, ops.head_dim)
        extended = hidden.new_empty(shape)
        if level:
            num_before = self._suffix.shape[2] // len(parents)
            first = torch.arange(len(parents), device=parents.device)[:, None] * num_before
            extended[:, :, :, :level] = self._suffix.index_select(2, (parents + first).flatten())
        return extended


def rows_at_once(vocab_size: int, device: torch.device) -> int:
    """Rows whose logits and their float32 log-softmax may be alive together.

    On a CPU about 4 MiB each, which stay in its second-level cache while they are summed up (one pass over
    400 rows of 5,120 took three times as long as eight over 50), but at least 128 rows, because every
    chunk reads the whole output embedding again; on an accelerator 1 GiB for the same reason.
    """
    max_bytes = 4 * 2**20 if device.type == "cpu" else 2**30
    return max(128, max_bytes // (4 * vocab_size))


def chunked_logprobs(
    normed: torch.Tensor, weight: torch.Tensor, first: int, count: int, *, num_rows: int | None = None
) -> torch.Tensor:
    """SID columns of log_softmax(normed @ weight.T) without keeping full logits.

    Args:
        normed: Shape: (n, D).
        weight: output embedding. Shape: (V, D).
        first, count: columns [first, first + count) to return.
        num_rows: rows in work at once; None: `rows_at_once`.

    Returns:
        Shape: (n, count), float32.
    """
    pieces = []
    for chunk in normed.split(num_rows or rows_at_once(len(weight), weight.device)):
        logits = torch.nn.functional.linear(chunk, weight)
        pieces.append(logprob_columns(logits, first, count))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def logprob_columns(logits: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Columns [first, first + count) of the log-softmax over all columns, in float32.

    One fused kernel over the whole row; subtracting a log-sum-exp from the wanted columns alone took
    twice as long on a CPU (50 rows of 5,120: 2.2 ms against 0.7).

    Shapes: (n, V) -> (n, count).
    """
    return logits.log_softmax(-1, dtype=torch.float32)[:, first : first + count]
