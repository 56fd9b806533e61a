"""Both stages end to end: every kind of recipe gives SIDs that serving can extend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from service.semantic_ids.tokenizer import SemanticIdTokenizer
from training.base_model.config import MadeConfig
from training.base_model.load import save_model
from training.base_model.made import make_tokenizer, make_untrained
from training.errors import TrainingError
from training.items.dataset import ROW_SCHEMA, Dataset
from training.pipeline import STAGES, StageContext
from training.recipe import Recipe
from training.semantic_ids import embeddings_stage, stage
from training.semantic_ids.config import EncoderConfig, RqVaeConfig, SemanticIdsConfig
from training.semantic_ids.stage import fitting_codebook_size

COLOURS, THINGS = ["red", "blue", "green", "white"], ["lamp", "desk", "chair", "shelf", "mirror"]
NUM_ITEMS = 60


def dataset() -> Dataset:
    items = pl.DataFrame(
        {
            "item_id": [f"item-{n}" for n in range(NUM_ITEMS)],
            "title": [
                f"{COLOURS[n % 4]} {THINGS[n % 5]} {['small', 'large'][n % 2]}" for n in range(NUM_ITEMS)
            ],
            "description": [f"for {['home', 'office', 'garden'][n % 3]} use" for n in range(NUM_ITEMS)],
            "metadata": [json.dumps({"brand": "AB"[n % 2] + "rand"}) for n in range(NUM_ITEMS)],
        }
    )
    rows = [(f"u{n}", [n % NUM_ITEMS, (n + 5) % NUM_ITEMS], (n + 10) % NUM_ITEMS) for n in range(80)]
    frame = pl.DataFrame(rows, schema=ROW_SCHEMA, orient="row")
    return Dataset.make(items, frame, frame[:5], frame[:5], history_limit=4, name="small")


def run_both(root: Path, **sections: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    recipe = Recipe(name="x", **sections)
    dataset().save(root / "items")
    found = []
    for name, module in (("embeddings", embeddings_stage), ("semantic_ids", stage)):
        context = StageContext(recipe, root, next(one for one in STAGES if one.name == name))
        context.dir.mkdir(exist_ok=True)
        found.append(module.run(context))
    return found[0], found[1]


def write_base_model(directory: Path) -> None:
    config = MadeConfig(
        num_layers=1, hidden_size=16, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=24,
        vocab_size=300, max_positions=64, context_tokens=16,
    )  # fmt: skip
    tokenizer = make_tokenizer(["a red lamp for home use", "a large blue chair"], config.vocab_size)
    save_model(make_untrained(config, tokenizer, 0), tokenizer, directory)


def tokenizer_of(root: Path, target: Path) -> SemanticIdTokenizer:
    """The bundle's `tokenizer/`, laid out as the export does."""
    target.mkdir()
    (root / "embeddings" / "encoder").rename(target / "encoder")
    for name in ("codebooks.safetensors", "levels.json"):
        (root / "semantic_ids" / name).rename(target / name)
    return SemanticIdTokenizer.load(target)


@pytest.mark.parametrize("weight", [0.0, 0.8])
@pytest.mark.parametrize("collisions", ["reassign", "extra_level", "keep"])
def test_a_run_gives_ids_that_serving_can_extend(tmp_path: Path, weight: float, collisions: Any) -> None:
    encoder = EncoderConfig(dim=8, max_share=0.9, collaborative_weight=weight, collaborative_dim=4)
    ids = SemanticIdsConfig(codebook_size=8, collisions=collisions)
    _, summary = run_both(tmp_path, encoder=encoder, semantic_ids=ids)
    codes = np.load(tmp_path / "semantic_ids" / "codes.npy")
    sizes = [
        level["codebook_size"] for level in json.loads((tmp_path / "semantic_ids/levels.json").read_text())
    ]
    assert (
        codes.shape == (NUM_ITEMS, 4 if collisions == "extra_level" else 3) and len(sizes) == codes.shape[1]
    )
    assert (codes >= 0).all() and (codes < sizes).all()
    assert (summary["unique_after"] == 1.0) == (collisions != "keep")
    assert (tmp_path / "semantic_ids" / "semantic_ids.png").stat().st_size > 10_000
    tokenizer = tokenizer_of(tmp_path, tmp_path / "tokenizer")
    new = tokenizer.vectors([("green lamp large", "for office use", '{"brand": "Arand"}'), ("", "", "{}")])
    chosen = tokenizer.assigner(codes).assign(new)
    assert len(np.unique(np.concatenate([np.unique(codes, axis=0), chosen]), axis=0)) == len(
        np.unique(codes, axis=0)
    ) + len(chosen)


@pytest.mark.parametrize("collisions", ["reassign", "sinkhorn"])
def test_an_rqvae_gives_ids_that_serving_encodes(tmp_path: Path, collisions: Any) -> None:
    rqvae = RqVaeConfig(hidden_sizes=(16,), latent_dim=6, steps=60, batch_size=32, revive_every=10)
    ids = SemanticIdsConfig(kind="rqvae", codebook_size=8, collisions=collisions, rqvae=rqvae)
    _, summary = run_both(tmp_path, encoder=EncoderConfig(dim=8, max_share=0.9), semantic_ids=ids)
    assert summary["unique_after"] == 1.0 and summary["kind"] == "rqvae"
    assert not (tmp_path / "semantic_ids" / "rqvae.st").exists()
    assert "| rqvae |" not in (table := (tmp_path / "semantic_ids" / "report.md").read_text())
    assert "dead codes revived" in table and table.count("\n| c |") == 1
    codes = np.load(tmp_path / "semantic_ids" / "codes.npy")
    tokenizer = tokenizer_of(tmp_path, tmp_path / "tokenizer")
    items = list(dataset().items.select("title", "description", "metadata").iter_rows())
    latents = tokenizer.vectors(items)
    assert latents.shape == (NUM_ITEMS, 6)
    # All but the moved items have the codes that the service computes.
    same = (tokenizer.codebooks.encode(latents)[0] == codes).all(1).mean()
    assert same >= 1 - summary["moved_items"] / NUM_ITEMS - 1e-9
    chosen = tokenizer.assigner(codes).assign(latents[:5])
    assert len(np.unique(np.concatenate([codes, chosen]), axis=0)) == NUM_ITEMS + 5


def test_the_same_recipe_gives_the_same_ids(tmp_path: Path) -> None:
    config = EncoderConfig(dim=8, max_share=0.9)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run_both(tmp_path / name, encoder=config)
    first, second = (np.load(tmp_path / name / "semantic_ids" / "codes.npy") for name in ("a", "b"))
    assert (first == second).all()


def test_the_report_reads_what_happened(tmp_path: Path) -> None:
    encoder = EncoderConfig(dim=8, max_share=0.9)
    run_both(tmp_path, encoder=encoder, semantic_ids=SemanticIdsConfig(codebook_size=8))
    report = json.loads((tmp_path / "semantic_ids" / "report.json").read_text())
    # 60 items of 4 * 5 * 3 different texts, of which the sizes follow the colours.
    assert report["unique_after"] == 1.0 and report["largest_bucket_after"] == 1
    assert report["num_levels"] == len(report["levels"]) == 3
    assert report["neighbours_share_first_code"] > 2 * report["neighbours_by_chance"]
    explained = [level["variance_explained"] for level in report["levels"]]
    assert 0.3 < explained[0] < explained[1] < explained[2] <= 1.0
    assert explained[2] == report["variance_explained"] >= report["variance_explained_after"]
    prefixes = [level["neighbours_share_prefix"] for level in report["levels"]]
    assert prefixes == sorted(prefixes, reverse=True)


def test_ready_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    table = {f"item-{n}": [f"<a_{1 + n % 4}>", f"<b_{1 + n % 5}>"] for n in range(NUM_ITEMS)}
    table |= {f"item-{n}": [*table[f"item-{n}"], f"<c_{n // 20}>"] for n in range(20, NUM_ITEMS)}
    (tmp_path / "index.json").write_text(json.dumps(table))
    config = SemanticIdsConfig(kind="file", file=tmp_path / "index.json")
    _, summary = run_both(tmp_path, encoder=EncoderConfig(dim=8, max_share=0.9), semantic_ids=config)
    codes = np.load(tmp_path / "semantic_ids" / "codes.npy")
    assert summary["moved_items"] == 0 and summary["codebooks"] == "5 x 6 x 3"
    assert codes[7].tolist() == [4, 3, 0] and codes[47].tolist() == [4, 3, 2]


def test_a_base_model_encodes_and_travels_along(tmp_path: Path) -> None:
    write_base_model(tmp_path / "base_model" / "model")
    config = EncoderConfig(kind="base_lm", batch_size=16)
    summary, _ = run_both(tmp_path, encoder=config, semantic_ids=SemanticIdsConfig(codebook_size=8))
    assert summary["dimensions"] == 16 and summary["weights_in_bundle"] is True
    vectors = np.load(tmp_path / "embeddings" / "text_embeddings.npy")
    tokenizer = tokenizer_of(tmp_path, tmp_path / "tokenizer")
    assert tokenizer.text.title_weight == 1
    items = list(dataset().items.select("title", "description", "metadata").iter_rows())
    assert tokenizer.vectors(items) == pytest.approx(vectors, abs=1e-5)


def test_a_made_base_model_must_travel_along(tmp_path: Path) -> None:
    write_base_model(tmp_path / "base_model" / "model")
    with pytest.raises(TrainingError, match="set encoder.ship_weights = true"):
        run_both(tmp_path, encoder=EncoderConfig(kind="base_lm", ship_weights=False))


def test_an_encoder_that_is_not_there_is_explained(tmp_path: Path) -> None:
    config = EncoderConfig(kind="transformer", name=str(tmp_path / "nowhere"))
    with pytest.raises(TrainingError, match="see encoder.name in the recipe"):
        run_both(tmp_path, encoder=config)


@pytest.mark.parametrize(
    ("wanted", "items", "levels", "size"),
    [
        (256, 3686, 3, 256),
        (256, 100, 3, 50),
        (256, 5, 3, 3),
        (256, 1, 3, 2),
        (8192, 100, 1, 200),
        (64, 960, 3, 64),
    ],
)
def test_small_catalogues_get_smaller_codebooks(wanted: int, items: int, levels: int, size: int) -> None:
    assert fitting_codebook_size(wanted, items, levels) == size
