"""Stage `embeddings`: one vector per item.

    python -m training embeddings --config training/recipes/demo.toml

Reads items, base_model. Writes text_embeddings.npy and encoder/ (what serving needs to embed the
text of an item that comes later).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from service.errors import BundleError
from service.semantic_ids.item_text import ItemTextConfig, item_text
from service.semantic_ids.transformer_encoder import TransformerEncoder, TransformerSpec
from training.errors import TrainingError
from training.items.dataset import Dataset
from training.semantic_ids.config import EncoderConfig
from training.semantic_ids.tfidf import fit_tfidf

if TYPE_CHECKING:
    from training.pipeline import StageContext

_SHIPPED_BYTES = 200_000_000  # larger encoders are named in the bundle instead of copied into it


def run(context: StageContext) -> dict[str, Any]:
    """Embed the items' texts."""
    config = context.recipe.encoder
    dataset = Dataset.load(context.of("items"))
    text_config = _text_config(config)
    columns = dataset.items.select("title", "description", "metadata").iter_rows()
    texts = [item_text(title, text, extra, text_config) for title, text, extra in columns]
    target = context.dir / "encoder"
    if config.kind == "tfidf_svd":
        encoder, vectors = fit_tfidf(
            texts, dataset.train_sequences["items"], config, seed=context.recipe.seed
        )
        encoder.save(target)
        details: dict[str, Any] = {"terms": len(encoder.vocabulary)}
    else:
        vectors, details = _embed(texts, config, target, context)
    (target / "text.json").write_text(text_config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    np.save(context.dir / "text_embeddings.npy", vectors)
    empty = int((np.abs(vectors).sum(1) == 0).sum())
    return {"items": len(vectors), "dimensions": vectors.shape[1], "items_without_text": empty, **details}


def _text_config(config: EncoderConfig) -> ItemTextConfig:
    """What is read of an item; repetition means something to a bag of words only."""
    if config.kind == "tfidf_svd":
        return config.text
    once = {name: min(1, getattr(config.text, name)) for name in ("title_weight", "metadata_weight")}
    return config.text.model_copy(update=once)


def _embed(
    texts: list[str], config: EncoderConfig, target: Path, context: StageContext
) -> tuple[np.ndarray, dict[str, Any]]:
    """Vectors by a transformer, which is saved for serving. Shape: (N, D), float32."""
    is_base = config.kind == "base_lm"
    name = context.recipe.base_model.name if is_base else str(config.name)
    spec = TransformerSpec(
        kind="base_lm" if is_base else "transformer",
        name=name,
        revision=context.recipe.base_model.revision if is_base else config.revision,
        pooling=config.pooling,
        max_tokens=config.max_tokens,
        text_prefix=config.text_prefix,
    )
    location = str(context.of("base_model") / "model") if is_base else None
    try:
        encoder = TransformerEncoder.open(spec, location, batch_size=config.batch_size)
    except BundleError as error:
        raise TrainingError(f"{error}; see encoder.name in the recipe") from error
    with tqdm(total=len(texts), desc="embed texts", unit="text") as bar:
        vectors = encoder.transform(texts, on_progress=bar.update)
    ship_weights = config.ship_weights
    if ship_weights is None:
        ship_weights = encoder.num_bytes <= _SHIPPED_BYTES
    if is_base and context.recipe.base_model.is_made and not ship_weights:
        raise TrainingError(
            "a base model made on the spot has no name that serving could load it by; "
            "set encoder.ship_weights = true or remove it"
        )
    encoder.save(target, ship_weights=ship_weights)
    return vectors, {"encoder": name, "weights_in_bundle": ship_weights}
