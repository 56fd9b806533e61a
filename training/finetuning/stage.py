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

from service.bundle import ContextReader, PromptTemplate
from training.base_model.load import load_model, num_parameters, pick_device, save_model
from training.finetuning.config import FinetuningConfig
from training.finetuning.examples import context_examples, row_examples, sequence_examples
from training.finetuning.lora import add_lora, merge_lora
from training.finetuning.ranking import rank_finetune
from training.finetuning.train import finetune
from training.finetuning.validation import ValidationProbe
from training.grounding.diagnostics import code_uses, describe_rows
from training.grounding.initialize import ARMS
from training.grounding.pairs import pair_examples
from training.grounding.picture import draw_states
from training.grounding.states import ROWS, load_states, save_states
from training.grounding.vocabulary import Vocabulary, read_new_rows, token_matrices
from training.items.dataset import Dataset
from training.learning.batches import derive_seed
from training.learning.examples import Examples

if TYPE_CHECKING:
    from training.pipeline import StageContext
    from training.recipe import Recipe


def run(context: StageContext) -> dict[str, Any]:
    """Train, keep the best weights, save."""
    config = with_alignment(context.recipe)
    dataset = Dataset.load(context.of("items"))
    codes = np.load(context.of("semantic_ids") / "codes.npy")
    grounding = context.of("grounding")
    model, tokenizer = load_model(grounding / "model")
    model = model.to(pick_device())
    vocabulary = Vocabulary.load(grounding / "vocabulary.json", tokenizer)
    prompt = PromptTemplate.model_validate_json((grounding / "prompt.json").read_text(encoding="utf-8"))
    sid_tokens = vocabulary.tokens_of(codes)
    examples = make_examples(dataset, sid_tokens, prompt, config)
    pairs = None
    if config.alignment_share:
        pairs = pair_examples(
            dataset.items, sid_tokens, tokenizer, context.recipe.grounding, is_chat=prompt.style == "chat"
        )
    contexts = None
    if prompt.context is not None:
        reader = ContextReader.open(grounding / "model", vocabulary.levels)
        seed = derive_seed(context.recipe.seed, "finetuning", "contexts")
        contexts = context_examples(dataset, sid_tokens, prompt, reader, seed=seed)
    validation = ValidationProbe(dataset, codes, vocabulary.levels, prompt, config)
    if config.lora.rank:
        add_lora(model, config.lora, seed=context.recipe.seed)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    notes = finetune(
        model,
        examples,
        pairs,
        validation,
        config,
        levels=vocabulary.ranges,
        seed=context.recipe.seed,
        directory=context.dir,
        contexts=contexts,
        context_share=context.recipe.prompt.context_share,
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
            prompt=prompt,
            seed=context.recipe.seed,
            directory=context.dir,
        )
    save_model(model, tokenizer, context.dir / "model")
    _write_json(context, "history.json", notes)
    _write_json(context, "diagnostics.json", {"after SFT": _diagnose(context, model, vocabulary, codes)})
    for name in ("checkpoint.st", "best.st", "ranking.st"):
        (context.dir / name).unlink(missing_ok=True)
    summary = _summary(notes, examples, num_parameters(model), validation.num_rows)
    return summary | ({"parameters trained": trained} if config.lora.rank else {})


def with_alignment(recipe: Recipe) -> FinetuningConfig:
    """The recipe's section with the share of alignment pairs settled: its own, or else the arm's."""
    if recipe.finetuning.alignment_share is not None:
        return recipe.finetuning
    share = ARMS[recipe.grounding.init].alignment_share
    return recipe.finetuning.model_copy(update={"alignment_share": share})


def make_examples(
    dataset: Dataset, sid_tokens: np.ndarray, prompt: PromptTemplate, config: FinetuningConfig
) -> Examples:
    """The training part of the data in the form the recipe asks for."""
    is_rows = config.examples == "rows" or (config.examples == "auto" and prompt.style == "chat")
    if is_rows:
        targets = dataset.train["target"].to_list()
        return row_examples(dataset.train["history"], targets, sid_tokens, prompt)
    return sequence_examples(
        dataset.train_sequences["items"],
        sid_tokens,
        prompt,
        stride=config.window_stride,
        include_first_item=config.include_first_item,
    )


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
