"""Stage `semantic_ids`: one tuple of codes per item, unique unless the recipe says otherwise.

    python -m training semantic_ids --config training/recipes/demo.toml

Reads items, embeddings. Writes codes.npy, levels.json, codebooks.safetensors, report.json,
report.md and semantic_ids.png.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from service.bundle.manifest import LETTERS
from service.semantic_ids.codebooks import Codebooks
from service.semantic_ids.mlp import Mlp
from training.items.dataset import Dataset
from training.semantic_ids.collisions import number_collisions, reassign, spread_evenly
from training.semantic_ids.config import SemanticIdsConfig
from training.semantic_ids.fit_rqvae import fit_rqvae
from training.semantic_ids.imported import explain, read_semantic_ids
from training.semantic_ids.picture import draw
from training.semantic_ids.quality import describe
from training.semantic_ids.report import markdown
from training.semantic_ids.residual_kmeans import fit_residual_kmeans

if TYPE_CHECKING:
    from training.pipeline import StageContext

_CHECKPOINT = "rqvae.st"


def run(context: StageContext) -> dict[str, Any]:
    """Quantize, resolve collisions, report."""
    config = context.recipe.semantic_ids
    dataset = Dataset.load(context.of("items"))
    vectors = np.load(context.of("embeddings") / "text_embeddings.npy")
    found = _quantize(context, vectors, dataset)
    codebooks, raw_codes = found.codebooks, found.codes
    codes = resolve(config, raw_codes, found.latents, codebooks, dataset.popularity)
    sizes = [len(book) for book in codebooks.levels]
    sizes += [int(codes[:, level].max()) + 1 for level in range(len(sizes), codes.shape[1])]
    levels = [{"letter": letter, "codebook_size": size} for letter, size in zip(LETTERS, sizes, strict=False)]
    report = describe(
        codes,
        raw_codes,
        vectors,
        codebooks,
        dataset.train_sequences["items"],
        decode=found.decoder,
    ) | {"kind": config.kind, **found.notes}
    np.save(context.dir / "codes.npy", codes.astype(np.int32))
    codebooks.save(context.dir / "codebooks.safetensors")
    _write(context, "levels.json", levels)
    _write(context, "report.json", report)
    (context.dir / "report.md").write_text(markdown(report), encoding="utf-8")
    draw(codes, raw_codes, report, context.dir / "semantic_ids.png")
    (context.dir / _CHECKPOINT).unlink(missing_ok=True)
    summary = {key: value for key, value in report.items() if not isinstance(value, list)}
    summary["codebooks"] = " x ".join(str(size) for size in sizes)
    summary["dead_codes"] = " / ".join(str(level["dead_codes"]) for level in report["levels"])
    summary["entropy_bits"] = " / ".join(f"{level['entropy_bits']:.2f}" for level in report["levels"])
    return summary


@dataclass(frozen=True, eq=False)
class Quantized:
    """What either tokenizer makes of the vectors.

    Attributes:
        codebooks: what serving needs.
        latents: the vectors in the codebooks' space. Shape: (N, Z).
        codes: before collisions are handled. Shape: (N, L).
        decoder: codebooks' space -> vectors.
        notes: for the report.
    """

    codebooks: Codebooks
    latents: np.ndarray
    codes: np.ndarray
    decoder: Mlp = field(default_factory=Mlp)
    notes: dict[str, Any] = field(default_factory=dict)


def _quantize(context: StageContext, vectors: np.ndarray, dataset: Dataset) -> Quantized:
    config, seed = context.recipe.semantic_ids, context.recipe.seed
    if config.file is not None:
        codes = read_semantic_ids(config.file, dataset.items["item_id"].to_list())
        return Quantized(explain(codes, vectors), vectors, codes)
    size = fitting_codebook_size(config.codebook_size, len(vectors), config.num_levels)
    if config.kind == "rqvae":
        fitted = fit_rqvae(
            vectors,
            config.num_levels,
            size,
            config.rqvae,
            seed=seed,
            checkpoint=context.dir / _CHECKPOINT,
        )
        latents = fitted.codebooks.project(vectors)
        codes = fitted.codebooks.encode(latents)[0]
        return Quantized(fitted.codebooks, latents, codes, fitted.decoder, fitted.notes)
    codebooks = fit_residual_kmeans(
        vectors, config.num_levels, size, seed=seed, num_iterations=config.num_iterations
    )
    return Quantized(codebooks, vectors, codebooks.encode(vectors)[0])


def fitting_codebook_size(wanted: int, num_items: int, num_levels: int) -> int:
    """K for a catalogue of N items: at most one code for two items, yet twice as many SIDs as items.

    With as many codes as items the first level alone would name every item, and no code would be
    learned from more than one.
    """
    needed = math.ceil((2 * num_items) ** (1 / num_levels))
    return min(wanted, max(2, num_items // 2, needed))


def resolve(
    config: SemanticIdsConfig,
    raw_codes: np.ndarray,
    latents: np.ndarray,
    codebooks: Codebooks,
    popularity: np.ndarray,
) -> np.ndarray:
    """Handle collisions as the recipe says. Shape: (N, L) -> (N, L) or (N, L + 1)."""
    if config.collisions == "sinkhorn":
        raw_codes = spread_evenly(raw_codes, latents, codebooks)
    if config.collisions in ("reassign", "sinkhorn"):
        return reassign(raw_codes, latents, codebooks)
    if config.collisions == "extra_level":
        return number_collisions(raw_codes, popularity)
    return raw_codes


def _write(context: StageContext, name: str, value: Any) -> None:
    (context.dir / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
