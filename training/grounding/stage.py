"""Stage `grounding`: add the SID tokens to the base model and give them a meaning.

    python -m training grounding --config training/recipes/demo.toml

Reads items, base_model/model, semantic_ids. Writes model/ (extended, grounded), vocabulary.json,
prompt.json, rows.safetensors (the new rows at every moment), diagnostics.json and diagnostics.png.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from service.bundle import PromptTemplate
from training.base_model.load import load_model, pick_device, save_model
from training.errors import TrainingError
from training.grounding.config import PromptConfig
from training.grounding.diagnostics import CodeUse, code_uses, describe_rows, nearest_words
from training.grounding.frames import make_prompt
from training.grounding.initialize import ARMS, Arm, initial_rows
from training.grounding.pairs import pair_examples
from training.grounding.picture import draw_states
from training.grounding.rows import Given, shuffle_rows
from training.grounding.stage_a import run_stage_a
from training.grounding.stage_b import run_stage_b
from training.grounding.states import ROWS, save_states
from training.grounding.vocabulary import (
    Vocabulary,
    extend_vocabulary,
    read_new_rows,
    token_matrices,
    write_new_rows,
)
from training.items.dataset import Dataset

if TYPE_CHECKING:
    from training.pipeline import StageContext


def run(context: StageContext) -> dict[str, Any]:
    """Extend, initialize, ground, measure, save."""
    config = context.recipe.grounding
    dataset = Dataset.load(context.of("items"))
    codes = np.load(context.of("semantic_ids") / "codes.npy")
    model, tokenizer = load_model(context.of("base_model") / "model")
    model = model.to(pick_device())
    levels = read_levels(context.of("semantic_ids") / "levels.json")
    vocabulary = extend_vocabulary(model, tokenizer, levels)
    prompt = make_prompt(
        context.recipe.prompt, tokenizer, history_limit(context.recipe.prompt, dataset.history_limit)
    )
    check_length(prompt, len(levels), model)
    codebooks = _codebooks(context, len(levels))
    given = Given(vocabulary, dataset.items, codes, codebooks, tokenizer, config, context.recipe.seed)
    arm = ARMS[config.init]
    write_new_rows(model, vocabulary, initial_rows(model, arm, given))
    uses = code_uses(codes, [size for _, size in levels], codebooks)
    states = {"before": read_new_rows(model, vocabulary)}
    losses = _train(context, model, given, arm, states, is_chat=prompt.style == "chat")
    if arm.is_shuffled:
        shuffled = {
            name: shuffle_rows(rows, given) for name, rows in read_new_rows(model, vocabulary).items()
        }
        write_new_rows(model, vocabulary, shuffled)
        states["shuffled"] = shuffled
    _save(context.dir, model, tokenizer, vocabulary, prompt)
    save_states(context.dir / ROWS, states)
    report = _diagnose(context.dir, model, tokenizer, vocabulary, uses, states)
    report["losses"] = losses
    (context.dir / "diagnostics.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name in ("stage_a.st", "stage_b.st"):
        (context.dir / name).unlink(missing_ok=True)
    return _summary(config.init, vocabulary, prompt, report)


def _train(
    context: StageContext,
    model: nn.Module,
    given: Given,
    arm: Arm,
    states: dict[str, dict[str, torch.Tensor]],
    *,
    is_chat: bool,
) -> dict[str, Any]:
    """Stages A and B as the arm has them; adds the rows after each to `states`. Returns the losses."""
    config, seed, vocabulary = given.config, given.seed, given.vocabulary
    losses: dict[str, Any] = {}
    if not (arm.has_stage_a or arm.has_stage_b):
        return losses
    sid_tokens = vocabulary.tokens_of(given.codes)
    pairs = pair_examples(given.items, sid_tokens, given.tokenizer, config, is_chat=is_chat)
    if arm.has_stage_a:
        losses["stage_a"] = run_stage_a(
            model, vocabulary, pairs, config.stage_a, seed=seed, checkpoint=context.dir / "stage_a.st"
        )
        states["stage A"] = read_new_rows(model, vocabulary)
    if arm.has_stage_b:
        losses["stage_b"] = run_stage_b(
            model, pairs, arm.stage_b(config), seed=seed, checkpoint=context.dir / "stage_b.st"
        )
        states["stage B"] = read_new_rows(model, vocabulary)
    return losses


def read_levels(path: Path) -> list[tuple[str, int]]:
    """(letter, codebook_size) of every level, as the semantic-ID stage wrote them."""
    return [(level["letter"], level["codebook_size"]) for level in json.loads(path.read_text())]


def history_limit(config: PromptConfig, num_kept: int) -> int:
    """Items of history a prompt reads, at most the `num_kept` items that the data's histories keep."""
    limit = config.history_limit
    if limit is not None and limit > num_kept:
        raise TrainingError(
            f"prompt.history_limit = {limit} exceeds the {num_kept} items that the data's "
            "histories keep; raise items.history_limit too"
        )
    return limit or num_kept


def check_length(prompt: PromptTemplate, num_levels: int, model: nn.Module) -> None:
    """Refuse prompts that the model has no positions for."""
    any_model: Any = model
    needed = prompt.max_tokens(num_levels) + num_levels
    positions = any_model.config.max_position_embeddings
    if needed > positions:
        raise TrainingError(
            f"a prompt of {prompt.history_limit} items and its answer take {needed} tokens, but the base "
            f"model has {positions} positions; lower prompt.history_limit"
        )


def _codebooks(context: StageContext, num_levels: int) -> list[np.ndarray | None]:
    """Code vectors of every level; a level added for collisions has none."""
    loaded = load_file(context.of("semantic_ids") / "codebooks.safetensors")
    return [loaded.get(f"level_{level}") for level in range(num_levels)]


def _save(
    directory: Path, model: nn.Module, tokenizer: Any, vocabulary: Vocabulary, prompt: PromptTemplate
) -> None:
    save_model(model, tokenizer, directory / "model")
    vocabulary.save(directory / "vocabulary.json")
    (directory / "prompt.json").write_text(prompt.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _diagnose(
    directory: Path,
    model: nn.Module,
    tokenizer: Any,
    vocabulary: Vocabulary,
    uses: list[CodeUse],
    states: dict[str, dict[str, torch.Tensor]],
) -> dict[str, Any]:
    """Numbers of every state and matrix, nearest words, and the picture."""
    matrices = token_matrices(model)
    report: dict[str, Any] = {
        state: {
            name: describe_rows(values, matrices[name], vocabulary, uses) for name, values in rows.items()
        }
        for state, rows in states.items()
    }
    last = list(states.values())[-1]["input"]
    some_codes = np.flatnonzero(uses[0].is_used)[:5].tolist()
    report["nearest_words"] = nearest_words(last, matrices["input"], vocabulary, tokenizer, some_codes)
    shown = {name: rows["input"].cpu().numpy() for name, rows in states.items()}
    draw_states(directory / "diagnostics.png", shown, matrices["input"], vocabulary, uses)
    return report


def _summary(
    init: str, vocabulary: Vocabulary, prompt: PromptTemplate, report: dict[str, Any]
) -> dict[str, Any]:
    states = [name for name in report if name in ("before", "stage A", "stage B", "shuffled")]
    summary: dict[str, Any] = {
        "init": init,
        "SID tokens": vocabulary.num_new,
        "text tokens": len(vocabulary.text_token_ids),
        "prompt style": prompt.style,
    }
    for state in states:
        numbers = report[state]["input"]["all"]
        for name in ("effective_rank", "centred_rsa_spearman", "norm_mean"):
            value = numbers.get(name)
            summary[f"{name.replace('_', ' ')}, {state}"] = None if value is None else round(value, 4)
    for stage, losses in report["losses"].items():
        if losses:
            summary[f"loss, {stage.replace('_', ' ')}"] = f"{losses[0][1]:.3f} -> {losses[-1][1]:.3f}"
    return summary
