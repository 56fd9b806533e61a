"""Vectors and codes of many items, by the encoder and codebooks that a bundle was made with."""

from __future__ import annotations

import polars as pl

from service.batch.job import Job
from service.bundle import Bundle
from service.semantic_ids.tokenizer import SemanticIdTokenizer


class Embedder:
    """Embeds part after part. The same item gets the same vector, whatever part it is in.

    A part holds item_id, vector (in the codebooks' space) and codes: the nearest code of every level,
    which several items may share; a live item's semantic ID also says which of them it is.

    Args:
        job: whose parts.
        bundle: whose encoder and codebooks.

    Raises:
        BundleError: the bundle has no encoder, or its weights cannot be had.
    """

    def __init__(self, job: Job, bundle: Bundle) -> None:
        self._job = job
        self._tokenizer = SemanticIdTokenizer.load(bundle.tokenizer_dir)

    def answer(self, number: int) -> int:
        """Embed a part and put its file in place; returns its number of items."""
        items = self._job.rows_of(number)
        vectors = self._tokenizer.vectors(items.select("title", "description", "metadata").rows())
        codes, _ = self._tokenizer.codebooks.encode(vectors)
        columns = {"item_id": items["item_id"], "vector": vectors, "codes": codes}
        schema = {
            "vector": pl.Array(pl.Float32, vectors.shape[1]),
            "codes": pl.Array(pl.Int32, codes.shape[1]),
        }
        self._job.finish_part(number, pl.DataFrame(columns, schema_overrides=schema))
        return items.height

    def close(self) -> None:
        """Nothing runs beside it."""
