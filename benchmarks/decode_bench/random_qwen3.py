"""A Qwen3 of random weights with the module names of Hugging Face's, in torch alone.

The torch engine runs it like the real class, so that a machine with a GPU needs no transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Config:
    """Names as in a Qwen3 `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1e6


class Norm(nn.Module):
    """Weight and epsilon of an RMS norm; the engine computes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-6


class Rotary(nn.Module):
    """Rotary tables. Shapes: (1, n, D), (1, n) -> twice (1, n, d), in the dtype of the first."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self.register_buffer("frequencies", config.rope_theta**-exponents)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[..., None].float() * self.frequencies.float()
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


class Attention(nn.Module):
    """Projections and head norms."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * head, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head, width, bias=False)
        self.q_norm, self.k_norm = Norm(head), Norm(head)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = nn.SiLU()


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.hidden_size)
        self.mlp = Mlp(config)


class Body(nn.Module):
    """All but the output embedding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size)
        self.rotary_emb = Rotary(config)


class Qwen3ForCausalLM(nn.Module):
    """The engine knows models by their class's name. Output and input embeddings are tied.

    Args:
        config: the sizes.
        dtype: of the weights.
        device: where they are made.
    """

    def __init__(self, config: Config, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.model = Body(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.to_empty(device=device).to(dtype)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.05) if parameter.dim() == 2 else nn.init.ones_(parameter)
        self.lm_head.weight = self.model.embed_tokens.weight
        with device:
            self.model.rotary_emb = Rotary(config)
        self.eval().requires_grad_(False)
