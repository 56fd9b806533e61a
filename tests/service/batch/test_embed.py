"""Bulk embedding: the vectors and codes of the bundle's own tokenizer, in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from service.__main__ import app
from service.batch.inputs import read_items
from service.errors import BatchError
from service.semantic_ids.tokenizer import SemanticIdTokenizer

ITEMS = [
    {"item_id": "a", "title": "red lamp", "description": "new", "metadata": {"brand": "Acme"}, "price": 3},
    {"item_id": "b", "title": "blue chair"},
    {"item_id": 3, "title": "nothing known"},
]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def embed(bundle: Any, source: Path, output: Path, *arguments: str) -> dict[str, Any]:
    command = ["embed", "--bundle", str(bundle.path), "--input", str(source), "--output", str(output)]
    done = CliRunner().invoke(app, [*command, "--rows-per-part", "15", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.timeout(280)])])
def test_every_item_of_a_bundle_gets_its_vector_and_a_killed_job_goes_on(
    small_bundle: Any, tmp_path: Path, workers: int
) -> None:
    if workers > 1:
        pytest.importorskip("ray", reason="more than one worker runs on Ray: pip install 'ray[data]'")
    arguments = ["--workers", str(workers), "--cpus", "0.5"]
    source = small_bundle.path / "items.parquet"
    assert embed(small_bundle, source, tmp_path / "out", *arguments)["items"] == small_bundle.items.height
    (tmp_path / "out/part-000001.parquet").unlink()
    assert embed(small_bundle, source, tmp_path / "out", *arguments)["answered_now"] == 15
    found = pl.read_parquet(tmp_path / "out/part-*.parquet")
    tokenizer = SemanticIdTokenizer.load(small_bundle.tokenizer_dir)
    items = small_bundle.items
    vectors = tokenizer.vectors(items.select("title", "description", "metadata").rows())
    assert found["item_id"].to_list() == items["item_id"].to_list()
    np.testing.assert_allclose(found["vector"].to_numpy(), vectors, atol=1e-6)
    np.testing.assert_array_equal(found["codes"].to_numpy(), tokenizer.codebooks.encode(vectors)[0])


def test_lines_are_read_as_training_reads_them(tmp_path: Path) -> None:
    items = read_items(write_lines(tmp_path / "items.jsonl", ITEMS))
    assert items["item_id"].to_list() == ["a", "b", "3"]
    assert json.loads(items["metadata"][0]) == {"brand": "Acme", "price": 3}
    assert items["description"].to_list() == ["new", "", ""]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"item_id": "a"}], "line 1 .*title"),
        (["a"], "line 1"),
        ([{"item_id": "a", "title": None}], "without item_id or title"),
        ([ITEMS[0], ITEMS[0]], "item_id more than once"),
        ([], "no item"),
    ],
)
def test_a_bad_line_gets_a_sentence(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(BatchError, match=message):
        read_items(write_lines(tmp_path / "items.jsonl", rows))
