"""`LayerOps` over Hugging Face modules of Llama, Qwen2, Qwen3 and Mistral models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from service.decoding.prefix_decoder import chunked_logprobs
from service.errors import EngineError

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class HFLayerOps:
    """Runs a Hugging Face causal LM layer by layer.

    Args:
        model: one of `SUPPORTED`, full attention in every layer.

    Raises:
        EngineError: for any other architecture, or one with a sliding window.
    """

    def __init__(self, model: nn.Module) -> None:
        name = type(model).__name__
        config: Any = model.config
        if name not in SUPPORTED:
            raise EngineError(
                f"the torch engine runs {', '.join(SUPPORTED)}, not {name}; serve it with engine=vllm_logits"
            )
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise EngineError(f"{name} uses {sorted(kinds)}; only full attention is decoded correctly here")
        # Any: torch types the attributes of a module as Tensor | Module, which no layer is.
        self.model: Any = model
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self.head_dim: int = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self._layers = self.model.model.layers
        self._rotary = self.model.model.rotary_emb
        self._cos_sin: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.model.model.embed_tokens(token_ids)

    def qkv(
        self, layer: int, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        block = self._layers[layer]
        attention = block.self_attn
        normed = _normed(block.input_layernorm, hidden)
        query = attention.q_proj(normed).view(-1, self.num_heads, self.head_dim)
        key = attention.k_proj(normed).view(-1, self.num_kv_heads, self.head_dim)
        value = attention.v_proj(normed).view(-1, self.num_kv_heads, self.head_dim)
        if hasattr(attention, "q_norm"):
            query, key = _normed(attention.q_norm, query), _normed(attention.k_norm, key)
        rotated = _rotate(torch.cat([query, key], dim=1), *self._rotary_tables(hidden, positions))
        query, key = rotated.split([self.num_heads, self.num_kv_heads], dim=1)
        return query.contiguous(), key, value

    def finish_layer(self, layer: int, hidden: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        block = self._layers[layer]
        hidden = hidden + block.self_attn.o_proj(attention)
        mlp, normed = block.mlp, _normed(block.post_attention_layernorm, hidden)
        return hidden.add_(mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)).mul_(mlp.up_proj(normed))))

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return _normed(self.model.model.norm, hidden)

    def sid_logprobs(self, normed: torch.Tensor, first_token_id: int, codebook_size: int) -> torch.Tensor:
        return chunked_logprobs(normed, self.model.lm_head.weight, first_token_id, codebook_size)

    def _rotary_tables(
        self, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # All layers of a pass share one positions tensor: the tables are made once per pass.
        if self._cos_sin is None or self._cos_sin[0] is not positions:
            cos, sin = self._rotary(hidden[None], positions[None])
            sin = torch.cat([-sin[0, :, : sin.shape[-1] // 2], sin[0, :, sin.shape[-1] // 2 :]], dim=-1)
            self._cos_sin = (positions, cos[0][:, None], sin[:, None])
        return self._cos_sin[1], self._cos_sin[2]


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """An RMS norm module by torch's function: half the time of the module's own operations."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding in the half-split form. Shapes: (n, heads, d), (n, 1, d), (n, 1, d)."""
    half = x.shape[-1] // 2
    swapped = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    return torch.addcmul(x * cos, swapped, signed_sin)
