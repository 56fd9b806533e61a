"""Embed texts with a Hugging Face model: an embedding model, or the base LM's own hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from service.semantic_ids.tfidf_encoder import unit_rows
from training.errors import TrainingError


@torch.inference_mode()
def embed(
    texts: Sequence[str],
    model_name: str,
    *,
    revision: str | None = None,
    pooling: str = "mean",
    max_tokens: int = 256,
    batch_size: int = 64,
) -> np.ndarray:
    """Unit vectors of texts.

    Args:
        texts: longest first inside, in the given order outside.
        model_name: hub name or folder.
        revision: commit or tag of a hub model.
        pooling: "mean" of all tokens' last hidden states, or the "last" token's.
        max_tokens: longer texts are cut.
        batch_size: texts at once.

    Returns:
        Shape: (N, D), float32.

    Raises:
        TrainingError: the model cannot be loaded.
    """
    from transformers import AutoModel, AutoTokenizer

    auto_model: Any = AutoModel
    auto_tokenizer: Any = AutoTokenizer
    try:
        tokenizer = auto_tokenizer.from_pretrained(model_name, revision=revision)
        model = auto_model.from_pretrained(model_name, revision=revision, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise TrainingError(f"the encoder {model_name} cannot be loaded: {error}") from error
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
    vectors: list[np.ndarray | None] = [None] * len(texts)
    for at in tqdm(range(0, len(order), batch_size), desc="embed texts", unit="batch"):
        chosen = order[at : at + batch_size]
        batch = tokenizer(
            [texts[n] or " " for n in chosen],
            padding=True,
            truncation=True,
            max_length=max_tokens,
            return_tensors="pt",
        ).to(model.device)
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"][..., None]
        if pooling == "mean":
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        else:
            pooled = hidden[torch.arange(len(chosen)), batch["attention_mask"].sum(1) - 1]
        for n, vector in zip(chosen, pooled.float().cpu().numpy(), strict=True):
            vectors[n] = vector
    return unit_rows(np.stack([vector for vector in vectors if vector is not None]))
