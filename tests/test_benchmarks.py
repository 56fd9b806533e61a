"""The benchmark scripts run and their answers are items; what they time is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def last_line_of(script: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_gpu_script_runs_on_tiny_shapes() -> None:
    report = last_line_of("gpu.py", "--smoke")
    assert report["smoke"] is True
    assert all(row["answers"] > 0 and row["invalid"] == 0 for row in report["rows"])


def test_a_catalogue_for_the_capacity_page_is_loaded_and_weighed() -> None:
    assert last_line_of("capacity.py", "--child", "memory", "2000")["redis"] > 2000 * 100


@pytest.mark.slow
def test_decode_compares_engines_in_their_own_processes() -> None:
    arguments = ["--models", "6m", "--dtypes", "float32", "--widths", "10", "--concurrencies", "1,2"]
    engines = ["torch", "floor", "trie", "torch+1% filter", "hf_generate"]
    report = last_line_of(
        "decode.py", *arguments, "--engines", ",".join(engines), "--turns", "1", "--items", "3000"
    )
    rows = {(row["engine"], row["concurrency"]): row for row in report["rows"]}
    assert len(rows) == 10
    assert rows["hf_generate", 1]["same_beams"] == rows["hf_generate", 2]["same_beams"] == 1.0
    assert rows["torch", 1]["agreement"] == rows["hf_generate", 1]["agreement"]
    assert all(row["invalid"] == 0 for row in report["rows"] if row["engine"] != "floor")


@pytest.mark.slow
def test_answers_under_mixed_filters_and_exclusions_are_all_valid() -> None:
    report = last_line_of("validity.py", "--engine", "torch", "--items", "20000", "--answers", "5000")
    assert report["answers"] >= 5000
    assert report["invalid"] == report["short"] == 0
