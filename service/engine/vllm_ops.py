"""`LayerOps` over the modules of vLLM's Llama, Mistral, Qwen2 and Qwen3 models.

The modules are called one by one, outside vLLM's own forward pass, so quantised linear layers keep
working; the norms go straight to vLLM's kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from service.decoding.prefix_decoder import logprob_columns, rows_at_once


class VllmLayerOps:
    """Runs a vLLM causal LM layer by layer.

    Args:
        model: one of the classes in vllm_model.py, on one device, weights loaded.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._layers: Any = self._model.model.layers
        attention = self._layers[0].self_attn
        self.num_layers = len(self._layers)
        self.dtype: torch.dtype = self._model.model.norm.weight.dtype
        self.num_heads: int = attention.num_heads
        self.num_kv_heads: int = attention.num_kv_heads
        self.head_dim: int = attention.head_dim
        self._rows_at_once = rows_at_once(self._model.config.vocab_size, self._model.model.norm.weight.device)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self._model.model.embed_tokens(token_ids)

    def qkv(
        self, layer: int, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        block = self._layers[layer]
        attention = block.self_attn
        projected, _ = attention.qkv_proj(_normed(block.input_layernorm, hidden))
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        split = projected.view(-1, sum(heads), self.head_dim).split(heads, dim=1)
        query, key, value = split[0].contiguous(), split[1].contiguous(), split[2]
        if hasattr(attention, "q_norm"):
            query, key = _normed(attention.q_norm, query), _normed(attention.k_norm, key)
        # vLLM 0.32.0: the rotary kernel works in place and crashes on a stride-0 view of positions.
        query, key = attention.rotary_emb(positions.contiguous(), query.flatten(1), key.flatten(1))
        return (
            query.view(-1, self.num_heads, self.head_dim),
            key.view(-1, self.num_kv_heads, self.head_dim),
            value,
        )

    def finish_layer(self, layer: int, hidden: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        block = self._layers[layer]
        projected, _ = block.self_attn.o_proj(attention.contiguous())
        norm = block.post_attention_layernorm
        # In place: `hidden` becomes the sum, `projected` the norm of it.
        torch.ops._C.fused_add_rms_norm(projected, hidden, norm.weight, norm.variance_epsilon)
        return hidden.add_(block.mlp(projected))

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return _normed(self._model.model.norm, hidden)

    def sid_logprobs(self, normed: torch.Tensor, first_token_id: int, codebook_size: int) -> torch.Tensor:
        """As in the protocol; `rows_at_once` bounds the logits alive at once.

        `compute_logits` cuts the padding off vLLM's vocabulary and applies a model's logit scale.
        """
        pieces = [
            logprob_columns(self._model.compute_logits(rows), first_token_id, codebook_size)
            for rows in normed.split(self._rows_at_once)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """vLLM's own norm kernel; on a CPU its module would run six torch operations instead (0.32.0).

    Args:
        norm: an `RMSNorm` module.
        x: contiguous, which the kernel takes for granted.
    """
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, norm.weight, norm.variance_epsilon)
    return out
