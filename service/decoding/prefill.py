"""Read prompts once and keep their keys and values, without any serving engine's cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from service.decoding.prefix_decoder import LayerOps, PromptCache


def prefill(ops: LayerOps, prompts: Sequence[Sequence[int]], device: torch.device) -> PromptCache:
    """Read the prompts once.

    Linear layers run on the prompts packed end to end; attention runs on the right-padded batch,
    where the causal mask alone keeps real tokens from seeing padding.
    """
    lengths = [len(prompt) for prompt in prompts]
    num_requests, longest = len(prompts), max(lengths)
    is_packed = any(n != longest for n in lengths)
    # Places are worked out here: a boolean mask on a GPU would make every layer wait for its count.
    positions_n = np.concatenate([np.arange(n) for n in lengths])
    requests_n = np.repeat(np.arange(num_requests), lengths)
    tokens_n = np.fromiter((token for prompt in prompts for token in prompt), dtype=np.int64)
    positions, requests, packed = (
        torch.from_numpy(array).to(device) for array in (positions_n, requests_n, tokens_n)
    )

    def pad(x: torch.Tensor) -> torch.Tensor:
        """(n, heads, d) -> (R, heads, T, d), zeros in the padding."""
        if is_packed:
            padded = x.new_zeros(num_requests, longest, *x.shape[1:])
            padded[requests, positions] = x
        else:
            padded = x.view(num_requests, longest, *x.shape[1:])
        return padded.transpose(1, 2)

    hidden = ops.embed(packed)
    keys, values = [], []
    for layer in range(ops.num_layers):
        query, key, value = ops.qkv(layer, hidden, positions)
        key, value = pad(key).contiguous(), pad(value).contiguous()
        keys.append(key)
        values.append(value)
        out = F.scaled_dot_product_attention(pad(query), key, value, is_causal=True, enable_gqa=True)
        out = out.transpose(1, 2)
        rows = out[requests, positions] if is_packed else out.flatten(0, 1)
        hidden = ops.finish_layer(layer, hidden, rows.flatten(1))
    lengths_R = torch.as_tensor(lengths, device=device)
    return PromptCache(keys, values, lengths_R, ops.final_norm(hidden[lengths_R.cumsum(0) - 1]))
