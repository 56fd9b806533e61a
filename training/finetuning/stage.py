"""Stage `finetuning`: teach the grounded model which item comes next.

    python -m training finetuning --config training/recipes/demo.toml

Reads items, semantic_ids, grounding. Writes model/ (best by validation NDCG@10), history.json,
rows.safetensors, diagnostics.json and diagnostics.png.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from training.base_model.load import num_parameters, save_model
from training.finetuning.lora import add_lora, merge_lora
from training.finetuning.prepare import prepare
from training.finetuning.ranking import rank_finetune
from training.finetuning.train import finetune
from training.finetuning.validation import ValidationProbe
from training.grounding.diagnostics import code_uses, describe_rows
from training.grounding.picture import draw_states
from training.grounding.states import ROWS, load_states, save_states
from training.grounding.vocabulary import Vocabulary, read_new_rows, token_matrices
from training.items.dataset import Dataset
from training.learning.examples import Examples

if TYPE_CHECKING:
    from training.pipeline import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Train, keep the best weights, save."""
    dataset = Dataset.load(context.of("items"))
    start = prepare(
        context.recipe,
        dataset,
        semantic_ids=context.of("semantic_ids"),
        grounding=context.of("grounding"),
    )
    model, config, vocabulary = start.model, start.config, start.vocabulary
    validation = ValidationProbe(dataset, start.codes, vocabulary.levels, start.prompt, config)
    if config.lora.rank:
        add_lora(model, config.lora, seed=context.recipe.seed)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    notes = finetune(
        model,
        start.material,
        validation,
        config,
        levels=vocabulary.ranges,
        seed=context.recipe.seed,
        directory=context.dir,
    )
    if config.lora.rank:
        merge_lora(model)
    if config.ranking.steps:
        notes["ranking"] = rank_finetune(
            model,
            dataset,
            validation.ranking,
            config.ranking,
            levels=vocabulary.levels,
            prompt=start.prompt,
            seed=context.recipe.seed,
            directory=context.dir,
        )
    save_model(model, start.tokenizer, context.dir / "model")
    _write_json(context, "history.json", notes)
    _write_json(
        context, "diagnostics.json", {"after SFT": _diagnose(context, model, vocabulary, start.codes)}
    )
    for name in ("checkpoint.st", "best.st", "ranking.st"):
        (context.dir / name).unlink(missing_ok=True)
    summary = _summary(notes, start.material.examples, num_parameters(model), validation.num_rows)
    return summary | ({"parameters trained": trained} if config.lora.rank else {})


def _diagnose(context: StageContext, model: Any, vocabulary: Vocabulary, codes: np.ndarray) -> dict[str, Any]:
    """Numbers and picture of the SID tokens' rows after fine-tuning, beside those of the grounding stage."""
    codebooks = load_file(context.of("semantic_ids") / "codebooks.safetensors")
    uses = code_uses(
        codes,
        [level.codebook_size for level in vocabulary.levels],
        [codebooks.get(f"level_{number}") for number in range(len(vocabulary.levels))],
    )
    rows, matrices = read_new_rows(model, vocabulary), token_matrices(model)
    save_states(context.dir / ROWS, {"after SFT": rows})
    draw_states(
        context.dir / "diagnostics.png",
        load_states(context.of("grounding") / ROWS) | load_states(context.dir / ROWS),
        matrices["input"],
        vocabulary,
        uses,
    )
    return {name: describe_rows(rows[name], matrices[name], vocabulary, uses) for name in rows}


def _write_json(context: StageContext, name: str, value: Any) -> None:
    (context.dir / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _summary(
    notes: dict[str, Any], examples: Examples, parameters: int, validation_rows: int
) -> dict[str, Any]:
    ranking = notes.get("ranking")
    best = next(note for note in notes["evaluations"] if note["step"] == notes["best_step"])
    return {
        "examples": len(examples),
        "labelled tokens": examples.num_labels,
        "parameters": parameters,
        "steps": notes["steps"],
        "epochs": round(notes["steps"] / notes["steps_per_epoch"], 2),
        "best at epoch": best["epoch"],
        "valid rows": validation_rows,
        "valid NDCG@10": best["NDCG@10"],
        "valid HR@10": best["HR@10"],
        "valid loss": best["valid_loss"],
        **(
            {
                "valid NDCG@10 after ranking": ranking["after"]["NDCG@10"],
                "ranking kept": ranking["is_kept"],
            }
            if ranking
            else {}
        ),
    }
