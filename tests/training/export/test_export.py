"""From stage folders to a bundle that loads, says where it comes from, and is the same twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bundle import Bundle, ItemPrior, load_bundle
from service.decoding.trie import Trie
from service.engine.torch_engine import TorchDecoder
from training.evaluation import stage as evaluation_stage
from training.evaluation.serving_order import ServingOrder
from training.export import stage as export_stage
from training.export.provenance import plain_section, stage_numbers
from training.pipeline import STAGES, StageContext
from training.prior.features import relations
from training.recipe import Recipe


def context_of(name: str, run_dir: Path, recipe: Recipe) -> StageContext:
    stage = next(stage for stage in STAGES if stage.name == name)
    context = StageContext(recipe, run_dir, stage)
    context.dir.mkdir(exist_ok=True)
    return context


def small_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}
    words |= {f"<{letter}_{n}>": len(words) + n for letter, n in (("a", 0), ("a", 1))}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def run_dir(world: Any, world_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages before the evaluation are done."""
    from training.base_model.load import save_model

    root = tmp_path_factory.mktemp("run")
    world.dataset.save(root / "items")
    for name in ("embeddings/encoder/deep", "semantic_ids", "grounding", "finetuning", "refit"):
        (root / name).mkdir(parents=True)
    (root / "embeddings/encoder/encoder.json").write_text("{}")
    (root / "embeddings/encoder/deep/array.npy").write_bytes(b"x")
    np.save(root / "semantic_ids/codes.npy", world.codes)
    (root / "semantic_ids/codebooks.safetensors").write_bytes(b"y")
    levels = [level.model_dump() for level in world.levels]
    (root / "grounding/vocabulary.json").write_text(json.dumps(levels))
    (root / "grounding/prompt.json").write_text(world.prompt.model_dump_json())
    (root / "grounding/diagnostics.png").write_bytes(b"png")
    save_model(world_model, small_tokenizer(), root / "finetuning/model")
    summary = {"valid NDCG@10": 0.5, "steps": 10, "minutes of training": 3.0, "where": "/somewhere/else"}
    done = {"fingerprint": "f", "summary": summary, "minutes": 1.5}
    (root / "finetuning/done.json").write_text(json.dumps(done))
    order = ServingOrder.build(world.dataset, world.codes, world.levels)
    vectors = np.random.default_rng(1).normal(size=(world.dataset.num_items, 6))
    weighted = tuple(replace(one, weight=3.0) for one in relations(world.dataset, order, vectors, 5))
    bias = np.linspace(0, 2, world.dataset.num_items, dtype=np.float32)
    ItemPrior(world.prompt.history_limit, bias, weighted).save(root / "prior" / evaluation_stage.PRIOR_FILES)
    (root / "prior/report.json").write_text('{"kept": true}')
    return root


def run_both(run_dir: Path, recipe: Recipe) -> dict[str, Any]:
    evaluation_stage.run(context_of("evaluation", run_dir, recipe))
    return export_stage.run(context_of("export", run_dir, recipe))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    values = {"name": "tiny", "items": {"own": {"items": "/home/somebody/items.jsonl"}}}
    return Recipe.model_validate(values | {"export": {"title": "A tiny shop", "data_note": "Made up."}})


@pytest.fixture(scope="module")
def bundle(run_dir: Path, recipe: Recipe) -> Bundle:
    run_both(run_dir, recipe)
    return load_bundle(run_dir / "bundle")


def test_the_bundle_holds_what_serving_needs(bundle: Bundle, world: Any) -> None:
    manifest = bundle.manifest
    assert manifest.levels == world.levels
    assert manifest.prompt == world.prompt
    assert manifest.beam_width == 50
    assert set(manifest.files) >= {
        "tokenizer/codebooks.safetensors",
        "tokenizer/encoder/encoder.json",
        "tokenizer/encoder/deep/array.npy",
        "pictures/grounding_diagnostics.png",
        "README.md",
    }
    popularity = dict(bundle.items.select("item_id", "popularity").iter_rows())
    for item_id, count in zip(world.dataset.items["item_id"], world.dataset.popularity, strict=True):
        assert popularity[item_id] == count


def test_the_service_decodes_the_bundle_to_what_was_measured(
    bundle: Bundle, world: Any, run_dir: Path
) -> None:
    import polars as pl

    from training.base_model.load import load_model

    model, _ = load_model(bundle.model_dir)
    decoder = TorchDecoder(model, Trie.of_bundle(bundle), bundle.manifest.levels)
    rows = pl.read_parquet(run_dir / "evaluation" / "rows.parquet")
    item_ids = world.dataset.items["item_id"]
    for row in range(0, rows.height, 5):
        history = world.dataset.test["history"][row].to_list()
        at = [bundle.row_of[item_ids[item]] for item in history]
        prompt = bundle.manifest.prompt.token_ids(bundle.manifest.tokens_of(bundle.semantic_ids[at]))
        beams = decoder.decode([prompt], [50])[0]
        found = [
            n for first, end in zip(beams.first_row, beams.end_row, strict=True) for n in range(first, end)
        ]
        logprobs = np.repeat(beams.logprobs, beams.end_row - beams.first_row)
        scores = bundle.prior.scores(logprobs, np.array(found), np.array(at))
        by_score = np.array(found)[np.argsort(-scores, kind="stable")]
        assert by_score.tolist() != found  # the prior has a say
        found = by_score.tolist()
        expected = [item_ids[item] for item in rows["recommended"][row].to_list()]
        assert bundle.items["item_id"][found[:10]].to_list() == expected


def test_metrics_carry_their_floor_and_not_the_machine(bundle: Bundle) -> None:
    metrics = bundle.manifest.metrics
    assert metrics["metrics"]["HR@50"] > 0
    assert set(metrics["baselines"]) == {"popularity", "itemcf", "itemcf_tuned"}
    assert not {"hardware", "minutes"} & set(metrics)


def test_provenance_says_what_and_not_where(bundle: Bundle, run_dir: Path) -> None:
    provenance = bundle.manifest.provenance
    assert provenance["recipe"]["name"] == "tiny"
    assert provenance["recipe"]["items"]["own"]["items"] == "items.jsonl"
    assert provenance["stages"]["finetuning"] == {"valid NDCG@10": 0.5, "steps": 10}
    assert len(provenance["data_sha256"]) == 64
    assert "torch" in provenance["versions"]
    text = bundle.manifest.to_json() + (bundle.path / "README.md").read_text()
    assert str(run_dir) not in text
    assert "/home/" not in text
    for file in bundle.model_dir.glob("*.json"):
        assert str(run_dir) not in file.read_text(), file.name


def test_the_card_tells_people_what_it_is(bundle: Bundle) -> None:
    card = (bundle.path / "README.md").read_text()
    for part in ("# A tiny shop", "Made up.", "## Results", "ItemCF", "this model", "## Limits"):
        assert part in card
    assert "![pictures/grounding_diagnostics.png](pictures/grounding_diagnostics.png)" in card
    assert "python -m service --bundle" in card


def test_the_same_run_gives_the_same_bundle(
    bundle: Bundle, run_dir: Path, recipe: Recipe, tmp_path: Path
) -> None:
    again = tmp_path / "elsewhere"
    shutil.copytree(run_dir, again, ignore=shutil.ignore_patterns("bundle", "export", "evaluation"))
    assert run_both(again, recipe)["bundle id"] == bundle.bundle_id


def test_a_missing_stage_note_is_no_error(tmp_path: Path) -> None:
    assert stage_numbers(tmp_path) == {}


def test_paths_of_the_machine_are_cut() -> None:
    section = Recipe.model_validate({"name": "x", "base_model": {"name": "/models/qwen"}})
    assert plain_section(section)["base_model"]["name"] == "qwen"
