"""Stage `export`: put model, items, SIDs, trie, encoder and model card into one bundle.

    python -m training export --config training/recipes/demo.toml

Reads the folders of the earlier stages. Writes the bundle to `bundle` in the run's folder, and
bundle.json (its id) to its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from service.bundle import load_bundle, write_bundle
from service.decoding.trie import Trie
from training.evaluation.stage import has_refit, read_prior, read_vocabulary
from training.export.model_card import model_card
from training.export.provenance import bundle_metrics, bundle_provenance
from training.items.dataset import Dataset

if TYPE_CHECKING:
    from training.pipeline import StageContext

BUNDLE = "bundle"


def run(context: StageContext) -> dict[str, Any]:
    """Write the bundle, open it as the service would, and return its id and size."""
    dataset, source, prior_dir = _what_serves(context)
    levels, prompt = read_vocabulary(context.of("grounding"))
    results = json.loads((context.of("evaluation") / "results.json").read_text(encoding="utf-8"))
    provenance = bundle_provenance(context)
    pictures = find_pictures(context)
    card = model_card(
        context.recipe,
        items=dataset.items,
        results=results,
        provenance=provenance,
        pictures=sorted(pictures),
    )
    target = context.run_dir / BUNDLE
    bundle_id = write_bundle(
        target,
        name=context.recipe.name,
        model_dir=source / "model",
        codes=np.load(context.of("semantic_ids") / "codes.npy", allow_pickle=False),
        items=dataset.items.with_columns(popularity=pl.Series(dataset.popularity)),
        levels=levels,
        prompt=prompt,
        build_trie=Trie.build,
        tokenizer_files=tokenizer_files(context),
        card=card,
        card_files=pictures,
        context_trained=prompt.context is not None,
        prior=read_prior(prior_dir, dataset.num_items),
        beam_width=results["beam_width"],
        provenance=provenance,
        metrics=bundle_metrics(results),
    )
    bundle = load_bundle(target)  # what cannot be read back must not be called done
    num_bytes = sum(entry.num_bytes for entry in bundle.manifest.files.values())
    about = {"bundle id": bundle_id, "files": len(bundle.manifest.files), "MB": round(num_bytes / 1e6, 2)}
    (context.dir / "bundle.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


def _what_serves(context: StageContext) -> tuple[Dataset, Path, Path]:
    """The rows that were learned from, and the folders of model and prior; the refitted ones, if any."""
    dataset, refit = Dataset.load(context.of("items")), context.of("refit")
    if has_refit(refit):
        return dataset.with_validation(), refit, refit
    return dataset, context.of("finetuning"), context.of("prior")


def tokenizer_files(context: StageContext) -> dict[str, Path]:
    """What serving needs to give a new item a SID: the text encoder and the codebooks."""
    encoder = context.of("embeddings") / "encoder"
    files = {
        f"encoder/{path.relative_to(encoder).as_posix()}": path
        for path in sorted(encoder.rglob("*"))
        if path.is_file()
    }
    for name in ("codebooks.safetensors", "levels.json"):
        path = context.of("semantic_ids") / name
        if path.is_file():
            files[name] = path
    return files


def find_pictures(context: StageContext) -> dict[str, Path]:
    """Pictures for the model card, by their name in the bundle."""
    return {
        f"pictures/{stage}_{path.name}": path
        for stage in ("semantic_ids", "grounding", "finetuning")
        for path in sorted(context.of(stage).glob("*.png"))
    }
