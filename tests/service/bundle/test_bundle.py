"""The bundle: what is written can be read, and nothing damaged is served."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from service.__main__ import app
from service.bundle import Level, PromptTemplate, load_bundle, write_bundle
from service.bundle.layout import hash_file
from service.bundle.manifest import MANIFEST_NAME
from service.decoding.trie import Trie
from service.errors import BundleError

LEVELS = [
    Level(letter="a", codebook_size=4, first_token_id=10),
    Level(letter="b", codebook_size=8, first_token_id=14),
]
CODES = np.array([[3, 1], [0, 7], [0, 2], [3, 1], [1, 0]])
POPULARITY = [5, 1, 1, 9, 0]


def write(directory: Path, **changes: object) -> str:
    model = directory / "model-source"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(
        json.dumps({"architectures": ["X"], "vocab_size": 22, "eos_token_id": 1})
    )
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "generation_config.json").write_text('{"top_k": 20, "top_p": 0.8}')
    items = pl.DataFrame(
        {
            "item_id": [f"item-{n}" for n in range(5)],
            "title": [f"Title {n}" for n in range(5)],
            "description": [""] * 5,
            "metadata": ["{}"] * 5,
            "popularity": POPULARITY,
        }
    )
    arguments = {
        "name": "test",
        "model_dir": model,
        "codes": CODES,
        "items": items,
        "levels": LEVELS,
        "prompt": PromptTemplate(style="sequence", history_limit=3),
        "build_trie": Trie.build,
    }
    return write_bundle(directory / "bundle", **{**arguments, **changes})


@pytest.fixture
def bundle_dir(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path / "bundle"


def edit_manifest(bundle_dir: Path, edit) -> None:
    file = bundle_dir / MANIFEST_NAME
    manifest = json.loads(file.read_text())
    edit(manifest)
    file.write_text(json.dumps(manifest))


def test_rows_are_sorted_by_sid_then_popularity(bundle_dir: Path) -> None:
    bundle = load_bundle(bundle_dir)
    assert bundle.semantic_ids.tolist() == [[0, 2], [0, 7], [1, 0], [3, 1], [3, 1]]
    assert bundle.items["item_id"].to_list() == ["item-2", "item-1", "item-4", "item-3", "item-0"]
    assert bundle.popular_rows.tolist() == [3, 4, 1, 0, 2]
    assert bundle.row_of["item-3"] == 3
    assert Trie.of_bundle(bundle).num_leaves == 4


def test_the_same_content_has_the_same_id(tmp_path: Path) -> None:
    first = write(tmp_path)
    assert write(tmp_path) == first
    assert write(tmp_path, name="another") != first


def test_a_bundle_that_names_no_width_has_the_id_of_before_and_one_that_does_keeps_it(tmp_path: Path) -> None:
    before = write(tmp_path)
    assert "beam_width" not in (tmp_path / "bundle" / "manifest.json").read_text()
    assert write(tmp_path, beam_width=100) != before
    assert load_bundle(tmp_path / "bundle").manifest.beam_width == 100


def test_sampling_defaults_do_not_reach_the_bundle(bundle_dir: Path) -> None:
    assert json.loads((bundle_dir / "model/generation_config.json").read_text()) == {"eos_token_id": 1}


def test_no_temporary_directory_is_left(bundle_dir: Path) -> None:
    assert sorted(p.name for p in bundle_dir.parent.iterdir()) == ["bundle", "model-source"]


def test_a_failed_write_leaves_the_old_bundle(tmp_path: Path) -> None:
    before = write(tmp_path)
    with pytest.raises(ValueError, match="allowed are 0..3"):
        write(tmp_path, codes=CODES + 10)
    assert load_bundle(tmp_path / "bundle").bundle_id == before


def test_a_missing_bundle_is_explained(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is missing; make one"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["model/model.safetensors", "items.parquet", "trie/child_code_1.npy"])
def test_a_flipped_byte_is_refused(bundle_dir: Path, name: str) -> None:
    content = bytearray((bundle_dir / name).read_bytes())
    content[-1] ^= 1
    (bundle_dir / name).write_bytes(content)
    with pytest.raises(BundleError, match="changed or damaged"):
        load_bundle(bundle_dir)


def test_a_half_copied_file_is_refused_even_without_hashing(bundle_dir: Path) -> None:
    file = bundle_dir / "semantic_ids.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(BundleError, match="bytes instead of"):
        load_bundle(bundle_dir, verify=False)


def test_an_unknown_schema_version_is_refused(bundle_dir: Path) -> None:
    edit_manifest(bundle_dir, lambda manifest: manifest.update(schema_version=2))
    with pytest.raises(BundleError, match="schema version 2, this release reads 1"):
        load_bundle(bundle_dir)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a\\b"])
def test_a_path_outside_the_bundle_is_refused(bundle_dir: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "num_bytes": 1}
    edit_manifest(bundle_dir, lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(bundle_dir)


def test_a_pickle_in_the_model_is_refused(bundle_dir: Path) -> None:
    (bundle_dir / "model/pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(BundleError, match="unsafe format"):
        load_bundle(bundle_dir)


def test_overlapping_levels_are_refused(bundle_dir: Path) -> None:
    edit_manifest(bundle_dir, lambda manifest: manifest["levels"][1].update(first_token_id=12))
    with pytest.raises(BundleError, match="overlap"):
        load_bundle(bundle_dir)


def test_only_the_pinned_bundle_is_opened(bundle_dir: Path) -> None:
    bundle_id = load_bundle(bundle_dir).bundle_id
    assert load_bundle(bundle_dir, expected_id=bundle_id).bundle_id == bundle_id
    with pytest.raises(BundleError, match=f"holds bundle {bundle_id}"):
        load_bundle(bundle_dir, expected_id="0" * 16)


def test_the_verify_command_needs_no_key_and_checks_the_pin(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GTIREC_HOST", "0.0.0.0")
    monkeypatch.setenv("GTIREC_BUNDLE_ID", "")
    done = CliRunner().invoke(app, ["bundle", "verify", "--bundle", str(bundle_dir)])
    assert (done.exit_code, done.output.strip()) == (0, load_bundle(bundle_dir).bundle_id)
    monkeypatch.setenv("GTIREC_BUNDLE_ID", "0" * 16)
    assert CliRunner().invoke(app, ["bundle", "verify", "--bundle", str(bundle_dir)]).exit_code == 2


def test_unsorted_rows_are_refused(bundle_dir: Path) -> None:
    file = bundle_dir / "semantic_ids.npy"
    np.save(file, np.load(file)[::-1].copy())
    entry = {"sha256": hash_file(file), "num_bytes": file.stat().st_size}
    edit_manifest(bundle_dir, lambda manifest: manifest["files"].update({"semantic_ids.npy": entry}))
    with pytest.raises(BundleError, match="not sorted"):
        load_bundle(bundle_dir)


def test_the_prompt_keeps_the_newest_history() -> None:
    template = PromptTemplate(
        style="chat",
        history_limit=2,
        prefix_token_ids=(1, 2),
        separator_token_ids=(9,),
        suffix_token_ids=(3,),
    )
    history = np.array([[10, 20], [11, 21], [12, 22]])
    assert template.token_ids(history) == [1, 2, 11, 21, 9, 12, 22, 3]
    assert template.token_ids(history[:0]) == [1, 2, 3]
    assert template.max_tokens(num_levels=2) == 8
