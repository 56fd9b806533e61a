"""Stage `refit`: train the chosen model once more, on training and validation rows together.

    python -m training refit --config training/recipes/industrial.toml

Nothing is chosen here: passes, average and the prior's weights are those that validation chose before.
Reads items, embeddings, semantic_ids, grounding, finetuning, prior. Writes model/, history.json and, where
a prior was kept, files/ with its counts of all these rows. Test rows are never read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from training.base_model.load import save_model
from training.errors import TrainingError
from training.evaluation.serving_order import ServingOrder
from training.evaluation.stage import PRIOR_FILES
from training.finetuning.lora import add_lora, merge_lora
from training.finetuning.prepare import prepare
from training.finetuning.train import retrain
from training.items.dataset import Dataset
from training.prior.stage import read_vectors, refreshed_prior

if TYPE_CHECKING:
    from training.pipeline import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Train, save, count."""
    recipe = context.recipe
    if not recipe.refit.enabled:
        return {"refit": "not asked for"}
    if recipe.finetuning.ranking.steps:
        raise TrainingError(
            "refit.enabled repeats fine-tuning alone: set finetuning.ranking.steps = 0, or refit.enabled "
            "= false"
        )
    chosen = json.loads((context.of("finetuning") / "history.json").read_text(encoding="utf-8"))
    epochs = chosen["best_step"] / chosen["steps_per_epoch"]
    before = Dataset.load(context.of("items"))
    dataset = before.with_validation()
    start = prepare(
        recipe, dataset, semantic_ids=context.of("semantic_ids"), grounding=context.of("grounding")
    )
    model, config = start.model, start.config
    if config.lora.rank:
        add_lora(model, config.lora, seed=recipe.seed)
    notes = retrain(
        model,
        start.material,
        config,
        epochs=epochs,
        levels=start.vocabulary.ranges,
        seed=recipe.seed,
        directory=context.dir,
    )
    if config.lora.rank:
        merge_lora(model)
    save_model(model, start.tokenizer, context.dir / "model")
    (context.dir / "history.json").write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    order = ServingOrder.build(dataset, start.codes, start.vocabulary.levels)
    vectors = read_vectors(context.of("embeddings"))
    prior = refreshed_prior(context.of("prior"), dataset, order, vectors, recipe.prior)
    if prior is not None:
        prior.save(context.dir / PRIOR_FILES)
    (context.dir / "checkpoint.st").unlink(missing_ok=True)
    return {
        "train rows": dataset.train.height,
        "of them validation rows": before.valid.height,
        "steps": notes["steps"],
        "epochs": round(epochs, 2),
        "train loss": notes["losses"][-1][1] if notes["losses"] else None,
        "prior refreshed": prior is not None,
    }
