"""Names inside a bundle, and the hash of a file: shared by the reader and the writer."""

from __future__ import annotations

import hashlib
from pathlib import Path

MODEL_DIR = "model"
TRIE_DIR = "trie"
TOKENIZER_DIR = "tokenizer"
ITEMS_FILE = "items.parquet"
ATTRIBUTES_FILE = "attributes.arrow"
SEMANTIC_IDS_FILE = "semantic_ids.npy"
CARD_FILE = "README.md"

ITEM_COLUMNS = ("item_id", "title", "description", "metadata", "popularity")

# Formats that can run code when they are read; a bundle never holds one.
UNSAFE_SUFFIXES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def all_files(directory: Path) -> dict[str, Path]:
    """Every regular file below a directory, by its relative path with '/', in sorted order."""
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return dict(sorted(found.items()))
