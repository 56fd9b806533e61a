"""Attention over [shared prompt ; own suffix] in two parts, merged by their log-sum-exps.

The prompt part is one fused kernel over all beams of a request, so that no score matrix of it is ever
written; the suffix has at most L - 1 tokens. Exact: softmax over a concatenation is the mean of the
parts' softmaxes, weighted by the parts' sums of exponentials.

Shapes: R requests, G key/value heads, n query rows of a head (beams times query heads per key/value
head), B beams, h query heads per key/value head, T prompt tokens, S suffix tokens, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from service.decoding.prefix_decoder import LayerOps, PromptCache, SharedPrefixScorer

ALIGNMENT = 64  # the CUDA kernel wants rows of the padding mask aligned; prompts are padded to this


def attention_with_lse(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the log of its softmax's denominator.

    Args:
        query: not yet scaled. Shape: (R, G, n, d).
        keys, values: Shape: (R, G, T, d).
        bias: added to the scores, -inf for padding. Shape: (R, 1, 1, T).

    Returns:
        Shapes: (R, G, n, d) in the query's dtype and (R, G, n), float32.
    """
    num_rows, scale = query.shape[2], query.shape[3] ** -0.5
    mask = bias.to(query.dtype).expand(*query.shape[:3], -1)
    if query.is_cuda:
        # torch 2.11 and 2.13: the memory-efficient kernel; its log-sum-exp is padded to 32 rows.
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, keys, values, mask, True, scale=scale
        )
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, attn_mask=mask, scale=scale
        )
    return out, lse[..., :num_rows].float()


def merge(
    first: torch.Tensor, first_lse: torch.Tensor, second: torch.Tensor, second_lse: torch.Tensor
) -> torch.Tensor:
    """Attention over two sets of keys from the attention over each. Shapes: (..., d) and (...)."""
    largest = torch.maximum(first_lse, second_lse)
    first_weight, second_weight = (first_lse - largest).exp(), (second_lse - largest).exp()
    total = first_weight + second_weight
    share = (first_weight / total)[..., None]
    return (first.float() * share + second.float() * (1 - share)).to(first.dtype)


class MergedScorer(SharedPrefixScorer):
    """The shared-prefix scorer with fused attention; its prompts are padded to `ALIGNMENT`."""

    def __init__(self, ops: LayerOps, levels: Sequence[tuple[int, int]], cache: PromptCache) -> None:
        super().__init__(ops, levels, cache)
        keys = cache.keys[0]
        is_padding = torch.arange(keys.shape[2], device=keys.device) >= cache.lengths[:, None]
        self._bias = keys.new_zeros(is_padding.shape).masked_fill_(is_padding, float("-inf"))[:, None, None]

    def _attend(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        num_requests, num_beams, num_heads, head_dim = query.shape
        groups = self._ops.num_kv_heads
        # (R, G, B, h, d): all beams of a request are rows of one matrix against its prompt.
        split = query.view(num_requests, num_beams, groups, -1, head_dim).permute(0, 2, 1, 3, 4)
        rows = split.reshape(num_requests, groups, -1, head_dim)
        out, lse = attention_with_lse(rows, self._cache.keys[layer], self._cache.values[layer], self._bias)
        keys, values = self._suffix_keys[layer], self._suffix_values[layer]
        scores = torch.einsum("rgbhd,rbsgd->rgbhs", split, keys).float() * head_dim**-0.5
        weights = scores.softmax(-1).to(query.dtype)
        suffix_out = torch.einsum("rgbhs,rbsgd->rgbhd", weights, values)
        merged = merge(out.view(split.shape), lse.view(split.shape[:-1]), suffix_out, scores.logsumexp(-1))
        return merged.permute(0, 2, 1, 3, 4).reshape(num_requests * num_beams, num_heads * head_dim)
