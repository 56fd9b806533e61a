"""Write a bundle: everything into a temporary directory beside the target, then one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from service.bundle.attributes import attributes_of, save_attributes
from service.bundle.item_prior import PRIOR_DIR, ItemPrior
from service.bundle.layout import (
    ATTRIBUTES_FILE,
    CARD_FILE,
    ITEM_COLUMNS,
    ITEMS_FILE,
    MODEL_DIR,
    SEMANTIC_IDS_FILE,
    TOKENIZER_DIR,
    TRIE_DIR,
    UNSAFE_SUFFIXES,
    all_files,
    hash_file,
)
from service.bundle.manifest import MANIFEST_NAME, FileEntry, Level, Manifest
from service.bundle.prompt import PromptTemplate
from service.errors import BundleError


class SavableTrie(Protocol):
    """What the writer needs of `service.decoding.trie.Trie` (which it may not import: it needs torch)."""

    @property
    def version(self) -> str: ...

    def save(self, directory: Path) -> None: ...


def write_bundle(
    target: Path,
    *,
    name: str,
    model_dir: Path,
    codes: np.ndarray,
    items: pl.DataFrame,
    levels: Sequence[Level],
    prompt: PromptTemplate,
    build_trie: Callable[[np.ndarray, tuple[int, ...]], SavableTrie],
    tokenizer_files: Mapping[str, Path] | None = None,
    card: str = "",
    card_files: Mapping[str, Path] | None = None,
    prior: ItemPrior | None = None,
    context_trained: bool = False,
    beam_width: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """Write a bundle atomically; an existing one at `target` is replaced.

    Args:
        target: directory to make.
        name: short name for people.
        model_dir: Hugging Face directory to copy; safetensors only. Its `generation_config.json` is
            replaced by a clean one, because sampling defaults of instruct models break beams.
        codes: SIDs in the order of `items`. Shape: (N, L).
        items: columns item_id, title, description, metadata, popularity; any order.
        levels: token ranges, one per level.
        prompt: the template used in training.
        build_trie: `Trie.build`.
        tokenizer_files: name below `tokenizer/` -> file to copy.
        card: text of the model card.
        card_files: name below the bundle -> file to copy (pictures of the card).
        prior: the item prior, in the order of the bundle's rows (SID, then popularity, then item_id).
        context_trained, beam_width, provenance, metrics: see `Manifest`.

    Returns:
        The bundle_id.

    Raises:
        BundleError: items and codes do not fit, or the model directory holds no safetensors.
    """
    order = _row_order(items, codes)
    codes = np.asarray(codes)[order]
    items = items.select(ITEM_COLUMNS)[order]
    trie = build_trie(codes, tuple(level.codebook_size for level in levels))
    staging = target.parent / f".{target.name}.writing-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        config = _copy_model(model_dir, staging / MODEL_DIR)
        items.write_parquet(staging / ITEMS_FILE, compression="zstd", statistics=False)
        largest = max(level.codebook_size for level in levels)
        np.save(staging / SEMANTIC_IDS_FILE, codes.astype(np.uint16 if largest <= 2**16 else np.uint32))
        trie.save(staging / TRIE_DIR)
        if prior is not None:
            prior.save(staging / PRIOR_DIR)
        save_attributes(attributes_of(items), staging / ATTRIBUTES_FILE)
        for relative, source in (tokenizer_files or {}).items():
            _copy(source, staging / TOKENIZER_DIR / relative)
        for relative, source in (card_files or {}).items():
            _copy(source, staging / relative)
        (staging / CARD_FILE).write_text(card or f"# {name}\n", encoding="utf-8")
        manifest = Manifest(
            name=name,
            num_items=items.height,
            levels=tuple(levels),
            vocab_size=int(config["vocab_size"]),
            architecture=config["architectures"][0],
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
            trie_version=trie.version,
            prompt=prompt,
            context_trained=context_trained,
            beam_width=beam_width,
            files=_hash_all(staging),
            provenance=dict(provenance or {}),
            metrics=dict(metrics or {}),
        )
        (staging / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        _sync(staging)
        _replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest.bundle_id()


def _row_order(items: pl.DataFrame, codes: np.ndarray) -> np.ndarray:
    """Rows by SID, then popularity (descending), then item_id. Shape: (N,), int64."""
    if missing := [column for column in ITEM_COLUMNS if column not in items.columns]:
        raise BundleError(f"the items lack the columns {missing}")
    if items.height != len(codes):
        raise BundleError(f"{items.height} items but {len(codes)} SIDs")
    if items["item_id"].n_unique() != items.height:
        raise BundleError("an item_id occurs more than once among the items")
    keys = {f"code_{level}": np.ascontiguousarray(codes[:, level]) for level in range(codes.shape[1])}
    frame = pl.DataFrame(keys).with_columns(items["popularity"], items["item_id"]).with_row_index("row")
    descending = [False] * len(keys) + [True, False]
    ordered = frame.sort([*keys, "popularity", "item_id"], descending=descending)
    return ordered["row"].to_numpy().astype(np.int64)


def _copy_model(source: Path, target: Path) -> dict[str, Any]:
    """Copy a Hugging Face directory and return its config."""
    files = all_files(source)
    if not any(name.endswith(".safetensors") for name in files):
        raise BundleError(f"{source} holds no .safetensors file; save the model with safe_serialization")
    for name, file in files.items():
        if not name.endswith(UNSAFE_SUFFIXES):
            _copy(file, target / name)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    (target / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
    return config


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _hash_all(directory: Path) -> dict[str, FileEntry]:
    return {
        name: FileEntry(sha256=hash_file(file), num_bytes=file.stat().st_size)
        for name, file in all_files(directory).items()
    }


def _sync(directory: Path) -> None:
    """Force files and directories to disk, so that a rename never exposes an empty file."""
    folders = {directory}
    for file in all_files(directory).values():
        folders.add(file.parent)
        _fsync(file)
    for folder in folders:
        _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(staging: Path, target: Path) -> None:
    """Rename into place. A directory cannot be exchanged atomically, so an old one steps aside first."""
    aside = target.parent / f".{target.name}.replaced-{os.getpid()}"
    if target.exists():
        target.rename(aside)
    staging.rename(target)
    _fsync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
