"""Attention of beams over [the prompt they share ; the few tokens each has written].

The two parts are computed apart and merged by their log-sum-exps: the prompt by one fused kernel
in which all beams of a request are rows of one matrix, the suffix (at most L - 1 tokens) by plain
elementwise sums. Nothing of the prompt is copied per beam, and no score matrix is kept.

Shapes: R requests, B beams, n = R * B rows, T padded prompt tokens, S suffix tokens, H query heads,
G key/value heads, h = H / G, d head width.
"""

from __future__ import annotations

import torch

ALIGNMENT = 64  # in tokens: CUDA's kernel wants the rows of the padding bias aligned


def padding_bias(lengths: torch.Tensor, longest: int, dtype: torch.dtype) -> torch.Tensor | None:
    """What to add to prompt scores so that padding gets no weight.

    Args:
        lengths: prompt tokens per request. Shape: (R,), int64.
        longest: T.
        dtype: of keys and values.

    Returns:
        0 or -inf, shape (R, 1, 1, T); None where nothing is padded. On an accelerator never None:
        looking would wait for the device.
    """
    aligned = -(-longest // ALIGNMENT) * ALIGNMENT
    padding = torch.arange(aligned, device=lengths.device) >= lengths[:, None]
    if lengths.device.type == "cpu" and not padding[:, :longest].any():
        return None
    bias = torch.zeros(padding.shape, dtype=dtype, device=lengths.device)
    return bias.masked_fill_(padding, float("-inf"))[:, None, None, :longest]


def attend_prompt(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every beam over its request's prompt.

    Args:
        query: Shape: (R, B, H, d).
        keys, values: Shape: (R, G, T, d).
        bias: added to the scores, see `padding_bias`. Shape: (R, 1, 1, T).

    Returns:
        Output and log-sum-exp of the scaled scores. Shapes: (n, H, d) and (n, H), float32.
    """
    num_requests, num_beams, num_heads, head_dim = query.shape
    groups = keys.shape[1]
    # (R, G, B * h, d): the heads that share keys are more rows of the same matrix.
    rows = query.view(num_requests, num_beams, groups, -1, head_dim).transpose(1, 2)
    out, lse = _fused(rows.reshape(num_requests, groups, -1, head_dim), keys, values, bias)
    out = out.reshape(num_requests, groups, num_beams, -1, head_dim).transpose(1, 2)
    lse = lse.reshape(num_requests, groups, num_beams, -1).transpose(1, 2)
    return out.reshape(-1, num_heads, head_dim), lse.reshape(-1, num_heads)


def add_suffix(
    query: torch.Tensor,
    suffix_keys: torch.Tensor,
    suffix_values: torch.Tensor,
    prompt_out: torch.Tensor,
    prompt_lse: torch.Tensor,
) -> torch.Tensor:
    """Merge the attention over the prompt with that over a beam's own tokens.

    Args:
        query: Shape: (n, H, d).
        suffix_keys, suffix_values: Shape: (n, S, G, d).
        prompt_out, prompt_lse: what `attend_prompt` returned.

    Returns:
        Shape: (n, H, d), dtype of `query`.
    """
    num_rows, num_heads, head_dim = query.shape
    groups = suffix_keys.shape[2]
    grouped = query.view(num_rows, 1, groups, -1, head_dim)
    # Elementwise, not a batched product: n * G matrices of (h x d) by (d x S) were twice as slow.
    scores = (grouped * suffix_keys[:, :, :, None]).sum(-1, dtype=torch.float32) * head_dim**-0.5
    lse = prompt_lse.view(num_rows, 1, groups, -1)
    weights = torch.cat([lse, scores], dim=1).softmax(1).to(query.dtype)[..., None]
    own = (weights[:, 1:] * suffix_values[:, :, :, None]).sum(1)
    shared = prompt_out.view(num_rows, groups, -1, head_dim) * weights[:, 0]
    return shared.add_(own).view(num_rows, num_heads, head_dim)


def _fused(
    rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log-sum-exp by one kernel. Shapes: (R, G, m, d) -> (R, G, m, d), (R, G, m).

    torch's public attention keeps the log-sum-exp to itself; these are the kernels under it, which
    take for granted that channels lie side by side. On CUDA (torch 2.11 and 2.13) it is the
    memory-efficient one, whose log-sum-exp is padded to 32 rows.
    """
    assert rows.stride(-1) == keys.stride(-1) == values.stride(-1) == 1, "channels must be contiguous"
    if rows.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            rows, keys, values, 0.0, False, attn_mask=bias
        )
    if bias is not None:
        bias = bias.expand(-1, rows.shape[1], rows.shape[2], -1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(rows, keys, values, bias, True)
    return out, lse[..., : rows.shape[2]]
