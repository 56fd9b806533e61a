from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.evaluation.metrics import ranking_metrics
from training.evaluation.serving_order import ServingOrder
from training.pipeline import STAGES, StageContext
from training.prior import stage as prior_stage
from training.prior.features import item_features, relations
from training.prior.fit import Choice, fit_weights
from training.recipe import Recipe


def test_the_fit_finds_the_weights_that_made_the_choices() -> None:
    generator = np.random.default_rng(0)
    true = np.array([1.0, -0.5, 2.0, 0.0])
    choices = []
    for _ in range(3000):
        features = generator.normal(size=(12, 4))
        noise = generator.gumbel(size=12)
        choices.append(Choice(features, int(np.argmax(features @ true + noise))))
    found = fit_weights(choices, start=np.array([1.0, 0, 0, 0]), ridge=1.0)
    np.testing.assert_allclose(found, true, atol=0.12)
    kept = fit_weights(choices[:50], start=np.array([1.0, 0, 0, 0]), ridge=1e9)
    np.testing.assert_allclose(kept, [1, 0, 0, 0], atol=1e-3)


def test_features_follow_the_training_rows(world: Any) -> None:
    order = ServingOrder.build(world.dataset, world.codes, world.levels)
    vectors = np.random.default_rng(0).normal(size=(world.dataset.num_items, 6)).astype(np.float32)
    following, near, alike = relations(world.dataset, order, vectors, 4)
    sequence = world.dataset.train_sequences["items"][0].to_list()
    before, after = order.row_of_item[sequence[0]], order.row_of_item[sequence[1]]
    assert following.strengths(np.array([after]), np.array([before]))[0] >= 1
    assert near.strengths(np.array([before]), np.array([after]))[0] > 0
    # the newest item counts in full, the one before it by `recency`
    one = following.strengths(np.array([after]), np.array([before]))[0]
    both = following.strengths(np.array([after]), np.array([before, before]))[0]
    assert both == pytest.approx(one * (1 + following.recency))
    units = vectors[order.item_of_row] / np.linalg.norm(vectors[order.item_of_row], axis=1, keepdims=True)
    cosines = units @ units.T - 2 * np.eye(len(units))
    for row in (0, 7, 29):
        nearest = np.argsort(-cosines[row])[:4]
        expected = np.zeros(len(units))
        expected[nearest] = np.maximum(cosines[row, nearest], 0) ** 2
        found = alike.strengths(np.arange(len(units)), np.array([row]))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(relations(world.dataset, order, vectors, 0)) == 2
    known = item_features(world.dataset, order, 0.2)
    row = int(np.argmax(known["popularity"]))
    targets = world.dataset.train["target"].to_list()
    assert np.expm1(known["popularity"][row]) == pytest.approx(targets.count(order.item_of_row[row]))


def run_stage(world: Any, model: Any, root: Path, **prior: Any) -> dict[str, Any]:
    from training.base_model.load import save_model
    from training.base_model.made import make_tokenizer

    world.dataset.save(root / "items")
    for name in ("embeddings", "semantic_ids", "grounding", "prior"):
        (root / name).mkdir(parents=True)
    np.save(root / "embeddings/text_embeddings.npy", np.eye(world.dataset.num_items, 8, dtype=np.float32))
    np.save(root / "semantic_ids/codes.npy", world.codes)
    levels = "[" + ",".join(level.model_dump_json() for level in world.levels) + "]"
    (root / "grounding/vocabulary.json").write_text(levels)
    (root / "grounding/prompt.json").write_text(world.prompt.model_dump_json())
    save_model(model, make_tokenizer(["a b c"], 300), root / "finetuning/model")
    recipe = Recipe.model_validate({"name": "tiny", "prior": prior})
    (stage,) = [stage for stage in STAGES if stage.name == "prior"]
    return prior_stage.run(StageContext(recipe, root, stage))


def test_a_prior_that_does_not_help_is_not_kept(world: Any, world_model: Any, tmp_path: Path) -> None:
    summary = run_stage(world, world_model, tmp_path, enabled=True, ridge=1e12)
    assert not summary["kept"]
    assert not (tmp_path / "prior" / "files").exists()
    assert run_stage(world, world_model, tmp_path / "off") == {"prior": "not asked for"}


def test_ranks_of_the_later_half_are_counted_from_the_score() -> None:
    rows = [prior_stage._Row(np.array([[1.0], [3.0], [2.0]]), 2), prior_stage._Row(np.zeros((3, 1)), -1)]
    assert prior_stage._metrics(rows, np.ones(1)) == {
        name: pytest.approx(value, abs=1e-6)
        for name, value in ranking_metrics(np.array([2, 0]), (1, 5, 10)).items()
    }
