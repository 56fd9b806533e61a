"""Hidden states of a batch without its padding.

Examples of different length are laid end to end: embeddings, norms and linear layers see real
tokens only. Attention alone runs on the padded batch, where the causal mask keeps real tokens from
seeing the padding on the right. Linear layers are called as modules, so that hooks (dropout) and
adapters on them keep their effect.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from service.engine.hf_ops import SUPPORTED
from training.learning.fused import pick_rows, rms_norm, rotate, spread_rows, swiglu

_ROUND = 64


def can_pack(model: nn.Module) -> bool:
    """True for the model forms whose layers this module knows; others run as Hugging Face wrote them."""
    config: Any = getattr(model, "config", None)
    return (
        type(model).__name__ in SUPPORTED
        and config.hidden_act == "silu"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not getattr(config, "sliding_window", None)
    )


class PackedBatch:
    """The real tokens of a right-padded batch, laid end to end.

    Their number is rounded up with some of the padding: oneDNN makes a new kernel for every size of
    product it meets, and making one takes longer than running it.

    Args:
        ids: token ids. Shape: (b, T), int64.
        is_label: tokens to be predicted. Shape: (b, T), bool.
        lengths: real tokens of every example. Shape: (b,), int64. None: no padding.

    Attributes:
        ids: packed token ids, token 0 for what was added. Shape: (n,), int64.
        positions: of the packed tokens in their examples. Shape: (n,), int64.
    """

    def __init__(
        self, ids: torch.Tensor, is_label: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> None:
        num_rows, width = ids.shape
        if lengths is None:
            lengths = ids.new_full((num_rows,), width)
        is_token = torch.arange(width, device=ids.device) < lengths[:, None]
        num_tokens = int(lengths.sum())
        num_added = -num_tokens % _ROUND
        num_spare = num_rows * width - num_tokens
        self._width = width
        self._num_rows = num_rows + max(0, -(-(num_added - num_spare) // width))
        is_free = torch.ones(self._num_rows * width, dtype=torch.bool, device=ids.device)
        is_free[: num_rows * width] = ~is_token.flatten()
        places = is_token.flatten().nonzero()[:, 0]
        self._places = torch.cat([places, is_free.nonzero()[:num_added, 0]])
        self.ids = torch.cat([ids[is_token], ids.new_zeros(num_added)])
        self.positions = self._places % width
        self._is_label = is_label[is_token]
        self._head_places: dict[int, torch.Tensor] = {}

    def labelled(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States that predict a labelled token, and those tokens; rounded up with targets of -100.

        Shape: (n, D) -> (m, D), (m,).
        """
        at = self._is_label.nonzero()[:, 0]
        targets = self.ids[at]
        num_added = -len(at) % _ROUND
        before = torch.cat([at - 1, at.new_zeros(num_added)])
        return hidden.index_select(0, before), torch.cat([targets, targets.new_full((num_added,), -100)])

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: (n, heads, d) -> (b, heads, T, d), zeros in the padding."""
        num_heads, size = x.shape[1:]
        places = self._places_of_heads(num_heads)
        rows = spread_rows(x.reshape(-1, size), places, self._num_rows * num_heads * self._width)
        return rows.view(self._num_rows, num_heads, self._width, size)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Undo `pad`. Shape: (b, heads, T, d) -> (n, heads * d)."""
        places = self._places_of_heads(x.shape[1])
        return pick_rows(x.reshape(-1, x.shape[-1]), places).view(len(self.ids), -1)

    def _places_of_heads(self, num_heads: int) -> torch.Tensor:
        """Place of every (token, head) in the padded batch, heads before time."""
        if num_heads not in self._head_places:
            row, time = self._places // self._width, self._places % self._width
            heads = torch.arange(num_heads, device=row.device)
            self._head_places[num_heads] = (
                ((row[:, None] * num_heads + heads) * self._width) + time[:, None]
            ).flatten()
        return self._head_places[num_heads]


class PackedForward:
    """The decoder stack of a Hugging Face causal LM on packed tokens.

    Args:
        model: one that `can_pack` accepts.
    """

    def __init__(self, model: nn.Module) -> None:
        any_model: Any = model
        self._decoder = any_model.model
        config = any_model.config
        self._head_dim: int = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        self._groups: int = config.num_attention_heads // config.num_key_value_heads

    def __call__(self, batch: PackedBatch, embedded: torch.Tensor | None = None) -> torch.Tensor:
        """Run the stack.

        Args:
            batch: the tokens.
            embedded: their embeddings, where they do not come from the model's own matrix alone.
                Shape: (n, D).

        Returns:
            States after the last norm, in the precision of the products. Shape: (n, D).
        """
        first: torch.Tensor = self._decoder.embed_tokens(batch.ids) if embedded is None else embedded
        device = first.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else first.dtype
        hidden = first.to(dtype)
        cos, sin = self._decoder.rotary_emb(hidden[None], batch.positions[None])
        turn = cos[0, :, None].to(dtype), sin[0, :, None].to(dtype)
        for block in self._decoder.layers:
            normed = _norm(block.input_layernorm, hidden)
            hidden = hidden + self._attention(block.self_attn, normed, batch, turn)
            normed = _norm(block.post_attention_layernorm, hidden)
            mlp = block.mlp
            hidden = hidden + mlp.down_proj(swiglu(mlp.gate_proj(normed), mlp.up_proj(normed)))
        return _norm(self._decoder.norm, hidden)

    def _attention(
        self, block: Any, normed: torch.Tensor, batch: PackedBatch, turn: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        shape = (len(normed), -1, self._head_dim)
        query = block.q_proj(normed).view(shape)
        key = block.k_proj(normed).view(shape)
        value = block.v_proj(normed).view(shape)
        if hasattr(block, "q_norm"):
            query, key = _norm(block.q_norm, query), _norm(block.k_norm, key)
        query, key = rotate(query, *turn), rotate(key, *turn)
        if self._groups > 1:
            key, value = key.repeat_interleave(self._groups, 1), value.repeat_interleave(self._groups, 1)
        drop = block.attention_dropout if block.training else 0.0
        query, key, value = (batch.pad(x) for x in (query, key, value))
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            out = _plain_attention(query, key, value, drop)
        else:
            out = F.scaled_dot_product_attention(query, key, value, dropout_p=drop, is_causal=True)
        return block.o_proj(batch.pack(out))


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon, x.dtype)


def _plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, drop: float
) -> torch.Tensor:
    """Causal attention by matrix products: see `precision.choose_attention` for why.

    Shapes: (b, heads, T, d) each -> (b, heads, T, d).
    """
    length = query.shape[2]
    hidden_later = torch.full((length, length), -math.inf, dtype=query.dtype, device=query.device).triu_(1)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    weights = torch.softmax(scores + hidden_later, dim=-1)
    return F.dropout(weights, drop) @ value
