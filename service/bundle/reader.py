"""Open a bundle, or refuse it with a sentence that says what is wrong and what to do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl
from pydantic import ValidationError

from service.bundle.item_prior import PRIOR_DIR, ItemPrior
from service.bundle.layout import (
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
from service.bundle.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest
from service.errors import BundleError


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Item rows are sorted by SID, then by the manifest's tie-break.

    Attributes:
        path: its directory.
        manifest: its contents.
        bundle_id: content address of the manifest, and through its hashes of everything.
        semantic_ids: codes of every item row, memory-mapped. Shape: (N, L), uint16 or uint32.
        items: columns item_id, title, description, metadata (a JSON object as text), popularity.
        prior: what results are ordered by beside the model; None: by the model alone.
    """

    path: Path
    manifest: Manifest
    bundle_id: str
    semantic_ids: np.ndarray
    items: pl.DataFrame
    prior: ItemPrior | None = None

    @property
    def model_dir(self) -> Path:
        """Hugging Face directory: safetensors, config, tokenizer."""
        return self.path / MODEL_DIR

    @property
    def trie_dir(self) -> Path:
        """Arrays of the trie."""
        return self.path / TRIE_DIR

    @property
    def tokenizer_dir(self) -> Path:
        """Text encoder and codebooks, to give new items a SID."""
        return self.path / TOKENIZER_DIR

    @cached_property
    def row_of(self) -> dict[str, int]:
        """item_id -> item row."""
        return {item_id: row for row, item_id in enumerate(self.items["item_id"])}

    @cached_property
    def popular_rows(self) -> np.ndarray:
        """Item rows by popularity, descending, then by item_id. Shape: (N,), int64."""
        order = self.items.select("popularity", "item_id").with_row_index("row")
        order = order.sort(["popularity", "item_id"], descending=[True, False])
        return order["row"].to_numpy().astype(np.int64)


def load_bundle(path: Path | str, *, verify: bool = True, expected_id: str | None = None) -> Bundle:
    """Open and check a bundle.

    Args:
        path: the bundle's directory.
        verify: also hash every file. Sizes, shapes, ranges and order are always checked.
        expected_id: refuse a bundle with another bundle_id.

    Raises:
        BundleError: anything is missing, damaged, unsafe or of another schema version.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if expected_id not in (None, manifest.bundle_id()):
        raise BundleError(
            f"{path} holds bundle {manifest.bundle_id()}, and {expected_id} is the one wanted; "
            "copy the right bundle there or change GTIREC_BUNDLE_ID"
        )
    _check_files(path, manifest, verify)
    _check_model_config(path, manifest)
    semantic_ids = _read_semantic_ids(path, manifest)
    items = _read_items(path, manifest)
    has_prior = any(name.startswith(f"{PRIOR_DIR}/") for name in manifest.files)
    prior = ItemPrior.load(path / PRIOR_DIR, manifest.num_items) if has_prior else None
    return Bundle(path, manifest, manifest.bundle_id(), semantic_ids, items, prior)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_NAME
    if not file.is_file():
        raise BundleError(
            f"no bundle at {path}: {MANIFEST_NAME} is missing; make one with `python -m training all` "
            "or point GTIREC_BUNDLE at the right directory"
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{file} has schema version {version!r}, this release reads {SCHEMA_VERSION}; "
                "export the bundle again with this release"
            )
        return Manifest.model_validate(raw)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise BundleError(f"{file} is damaged ({_first_line(error)}); export the bundle again") from error


def _check_files(path: Path, manifest: Manifest, verify: bool) -> None:
    required = {ITEMS_FILE, SEMANTIC_IDS_FILE, f"{MODEL_DIR}/config.json", f"{TRIE_DIR}/sizes.npy"}
    if missing := sorted(required - manifest.files.keys()):
        raise BundleError(f"the manifest in {path} does not list {missing[0]}; export the bundle again")
    for name in all_files(path / MODEL_DIR):
        if name.endswith(UNSAFE_SUFFIXES) or f"{MODEL_DIR}/{name}" not in manifest.files:
            raise BundleError(
                f"{path / MODEL_DIR / name} is not listed in the manifest or is of an unsafe format; "
                "remove it or export the bundle again"
            )
    for name, entry in manifest.files.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name:
            raise BundleError(f"the manifest in {path} names {name!r}, which is outside the bundle")
        if name.endswith(UNSAFE_SUFFIXES):
            raise BundleError(f"the manifest in {path} names {name!r}, a format that can run code")
        file = path / name
        if not file.is_file():
            raise BundleError(f"{file} is missing; copy the bundle again")
        if (size := file.stat().st_size) != entry.num_bytes:
            raise BundleError(f"{file} has {size} bytes instead of {entry.num_bytes}; copy the bundle again")
        if verify and hash_file(file) != entry.sha256:
            raise BundleError(f"{file} was changed or damaged (its hash is wrong); copy the bundle again")


def _check_model_config(path: Path, manifest: Manifest) -> None:
    file = path / MODEL_DIR / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} is damaged ({error}); export the bundle again") from error
    described = ([manifest.architecture], manifest.vocab_size)
    if (config.get("architectures"), config.get("vocab_size")) != described:
        raise BundleError(f"{file} does not fit the manifest ({described}); export the bundle again")


def _read_semantic_ids(path: Path, manifest: Manifest) -> np.ndarray:
    file = path / SEMANTIC_IDS_FILE
    try:
        codes = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}); export the bundle again") from error
    shape = (manifest.num_items, manifest.num_levels)
    if codes.shape != shape or codes.dtype not in (np.uint16, np.uint32):
        raise BundleError(f"{file} is {codes.dtype} {codes.shape}, the manifest says {shape}; export again")
    if (codes.max(axis=0) >= np.asarray(manifest.codebook_sizes)).any():
        raise BundleError(f"{file} has codes outside its codebooks; export the bundle again")
    ascending = np.zeros(len(codes) - 1, dtype=bool)
    for level in range(manifest.num_levels):
        before, after = codes[:-1, level], codes[1:, level]
        if (~ascending & (after < before)).any():
            raise BundleError(f"{file} is not sorted; export the bundle again")
        ascending |= after > before
    return codes


def _read_items(path: Path, manifest: Manifest) -> pl.DataFrame:
    file = path / ITEMS_FILE
    try:
        items = pl.read_parquet(file, columns=list(ITEM_COLUMNS))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise BundleError(f"{file} cannot be read ({_first_line(error)}); export again") from error
    if items.height != manifest.num_items:
        raise BundleError(f"{file} has {items.height} rows, the manifest says {manifest.num_items}")
    if items["item_id"].n_unique() != items.height:
        raise BundleError(f"{file} holds the same item_id more than once; export the bundle again")
    return items


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
