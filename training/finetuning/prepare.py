"""What fine-tuning starts from: the grounded model, its vocabulary, and the examples it learns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.bundle import ContextReader, PromptTemplate
from training.base_model.load import load_model, pick_device
from training.finetuning.config import FinetuningConfig
from training.finetuning.examples import context_examples, row_examples, sequence_examples
from training.finetuning.train import Material
from training.grounding.initialize import ARMS
from training.grounding.pairs import pair_examples
from training.grounding.vocabulary import Vocabulary
from training.items.dataset import Dataset
from training.learning.batches import derive_seed
from training.learning.examples import Examples

if TYPE_CHECKING:
    from training.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """Everything but the validation.

    Attributes:
        model: the grounded model, on its device.
        tokenizer: the model's.
        vocabulary: where the SID tokens stand.
        prompt: the template that serves.
        codes: SIDs in item-index order. Shape: (N, L).
        config: the recipe's section, with the share of alignment pairs settled.
        material: what is learned.
    """

    model: Any
    tokenizer: Any
    vocabulary: Vocabulary
    prompt: PromptTemplate
    codes: np.ndarray
    config: FinetuningConfig
    material: Material


def prepare(recipe: Recipe, dataset: Dataset, *, semantic_ids: Path, grounding: Path) -> Prepared:
    """Load and spell.

    Args:
        recipe: of the run.
        dataset: its training rows become examples.
        semantic_ids, grounding: folders of those stages.
    """
    config = with_alignment(recipe)
    codes = np.load(semantic_ids / "codes.npy")
    model, tokenizer = load_model(grounding / "model")
    vocabulary = Vocabulary.load(grounding / "vocabulary.json", tokenizer)
    prompt = PromptTemplate.model_validate_json((grounding / "prompt.json").read_text(encoding="utf-8"))
    sid_tokens = vocabulary.tokens_of(codes)
    examples = make_examples(dataset, sid_tokens, prompt, config)
    pairs = None
    if config.alignment_share:
        is_chat = prompt.style == "chat"
        pairs = pair_examples(dataset.items, sid_tokens, tokenizer, recipe.grounding, is_chat=is_chat)
    contexts = None
    if prompt.context is not None:
        reader = ContextReader.open(grounding / "model", vocabulary.levels)
        seed = derive_seed(recipe.seed, "finetuning", "contexts")
        contexts = context_examples(dataset, sid_tokens, prompt, reader, seed=seed)
    material = Material(examples, pairs, contexts, recipe.prompt.context_share)
    return Prepared(model.to(pick_device()), tokenizer, vocabulary, prompt, codes, config, material)


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
