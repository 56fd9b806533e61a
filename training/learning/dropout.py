"""Dropout for models that have none, through hooks, so that what is saved stays a plain HF model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn import functional as F


@contextlib.contextmanager
def dropout(model: nn.Module, *, embedding: float, residual: float, attention: float) -> Iterator[None]:
    """Inside the context the model drops units whenever it is in training mode.

    Args:
        model: a Llama-like Hugging Face causal LM.
        embedding: probability for the embedded tokens.
        residual: probability for what every attention and MLP block adds to the residual stream.
        attention: probability for attention weights.
    """
    inner: Any = model
    blocks = list(inner.model.layers)
    kept_attention = [block.self_attn.attention_dropout for block in blocks]
    handles = [_drop_output(inner.model.embed_tokens, embedding)]
    for block in blocks:
        handles.append(_drop_output(block.self_attn.o_proj, residual))
        handles.append(_drop_output(block.mlp.down_proj, residual))
        block.self_attn.attention_dropout = attention
    try:
        yield
    finally:
        for remove in handles:
            remove()
        for block, kept in zip(blocks, kept_attention, strict=True):
            block.self_attn.attention_dropout = kept


def _drop_output(module: nn.Module, probability: float) -> Callable[[], None]:
    """Drop units of a module's output; returns what undoes it."""
    if probability == 0:
        return lambda: None

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        return F.dropout(output, probability, training=module.training)

    return module.register_forward_hook(hook).remove
