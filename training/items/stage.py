"""Stage `items`: read or generate the data and save it as a `Dataset`.

    python -m training items --config training/recipes/demo.toml

Reads the files named in the recipe. Writes items.parquet, train/valid/test.parquet,
train_sequences.parquet, popularity.npy, dataset.json and bad_rows.jsonl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console

from training.items.bad_rows import BadRows
from training.items.build import build_dataset
from training.items.dataset import Dataset

if TYPE_CHECKING:
    from training.pipeline import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Make the dataset and return its sizes."""
    dataset, bad_rows = build_dataset(context.recipe.items)
    dataset.save(context.dir)
    bad_rows.save(context.dir / "bad_rows.jsonl")
    _tell(bad_rows)
    return summary(dataset) | {"bad rows left out": len(bad_rows.found)}


def summary(dataset: Dataset) -> dict[str, Any]:
    """Sizes worth a table row."""
    lengths = dataset.train_sequences["items"].list.len()
    users = pl.concat([dataset.train["user_id"], dataset.valid["user_id"], dataset.test["user_id"]])
    return {
        "items": dataset.num_items,
        "users": users.n_unique(),
        "train rows": dataset.train.height,
        "valid rows": dataset.valid.height,
        "test rows": dataset.test.height,
        "train sequences": dataset.train_sequences.height,
        "mean sequence": round(float(lengths.to_numpy().mean()), 2),
        "items never in train": int((dataset.popularity == 0).sum()),
        "items without description": int((dataset.items["description"] == "").sum()),
    }


def _tell(bad_rows: BadRows) -> None:
    if bad_rows.found:
        counted = ", ".join(f"{count} x {kind}" for kind, count in bad_rows.counts.items())
        Console(stderr=True).print(f"bad rows left out or mended: {counted}; listed in bad_rows.jsonl")
