"""Stage `embeddings`: one vector per item.

    python -m training embeddings --config training/recipes/demo.toml

Reads items, base_model. Writes text_embeddings.npy and encoder/ (what serving needs to embed the
text of an item that comes later).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from service.semantic_ids.item_text import item_text
from training.items.dataset import Dataset
from training.semantic_ids.hf_encoder import embed
from training.semantic_ids.tfidf import fit_tfidf

if TYPE_CHECKING:
    from training.pipeline import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Embed the items' texts."""
    config = context.recipe.encoder
    dataset = Dataset.load(context.of("items"))
    columns = dataset.items.select("title", "description", "metadata").iter_rows()
    texts = [item_text(title, text, extra, config.text) for title, text, extra in columns]
    target = context.dir / "encoder"
    target.mkdir(parents=True, exist_ok=True)
    if config.kind == "tfidf_svd":
        encoder, vectors = fit_tfidf(
            texts, dataset.train_sequences["items"], config, seed=context.recipe.seed
        )
        encoder.save(target)
        details: dict[str, Any] = {"terms": len(encoder.vocabulary)}
    else:
        is_base = config.kind == "base_lm"
        name = str(context.of("base_model") / "model") if is_base else str(config.name)
        vectors = embed(
            texts,
            name,
            revision=config.revision,
            pooling=config.pooling,
            max_tokens=config.max_tokens,
            batch_size=config.batch_size,
        )
        details = {"kind": config.kind, "name": None if is_base else config.name, "revision": config.revision}
        details |= {"pooling": config.pooling, "max_tokens": config.max_tokens}
        (target / "encoder.json").write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    (target / "text.json").write_text(config.text.model_dump_json(indent=2) + "\n", encoding="utf-8")
    np.save(context.dir / "text_embeddings.npy", vectors)
    empty = int((np.abs(vectors).sum(1) == 0).sum())
    return {"items": len(vectors), "dimensions": vectors.shape[1], "items_without_text": empty, **details}
