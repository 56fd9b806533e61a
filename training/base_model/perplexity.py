"""Perplexity of a language model on texts it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.base_model.text import encode_plain
from training.learning.batches import in_order
from training.learning.examples import Examples
from training.learning.objective import NextTokenLoss


@dataclass(frozen=True)
class Perplexity:
    """How well a text was predicted.

    Attributes:
        per_token: exp of the mean loss; depends on the tokenizer.
        bits_per_byte: loss in bits per UTF-8 byte of text; comparable between tokenizers.
        num_tokens: tokens measured.
    """

    per_token: float
    bits_per_byte: float
    num_tokens: int


def text_examples(tokenizer: Any, texts: Sequence[str], *, context_tokens: int, with_end: bool) -> Examples:
    """Texts as next-token examples, long ones cut into pieces of `context_tokens`.

    Args:
        tokenizer: its BOS (if any) starts every text, its EOS (if any) ends it if `with_end`.
        texts: one per item.
        context_tokens: longest piece.
        with_end: the end of a text is to be learned too.
    """
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    after = [tokenizer.eos_token_id] if with_end and tokenizer.eos_token_id is not None else []
    pieces = []
    for ids in encode_plain(tokenizer, texts):
        whole = [*before, *ids, *after]
        for start in range(0, len(whole), context_tokens):
            piece = whole[start : start + context_tokens]
            if len(piece) > 1:
                pieces.append((piece[:1], piece[1:]))
    return Examples.of_answers(pieces)


@torch.no_grad()
def perplexity(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], *, context_tokens: int, max_tokens: int
) -> Perplexity:
    """Measure on texts, in their order, until about `max_tokens` tokens were read."""
    read: list[str] = []
    count = 0
    for text in texts:
        if read and count >= max_tokens:
            break
        read.append(text)
        count += len(encode_plain(tokenizer, [text])[0])
    examples = text_examples(tokenizer, read, context_tokens=context_tokens, with_end=False)
    loss = NextTokenLoss(model.eval())
    device = next(model.parameters()).device
    total = 0.0
    for micro in in_order(examples, 4096):
        placed = micro.to(device)
        total += float(loss(placed.ids, placed.is_label, placed.lengths))
    num_bytes = sum(len(text.encode()) for text in read)
    num_tokens = max(1, examples.num_labels)
    return Perplexity(math.exp(total / num_tokens), total / math.log(2) / max(1, num_bytes), num_tokens)
