"""Stage `base_model`: load or make the language model, and say how well it knows the items' language.

    python -m training base_model --config training/recipes/demo.toml

Reads items.parquet. Writes model/ (Hugging Face form) and perplexity.json.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from training.base_model.load import load_model, num_parameters, pick_device, save_model
from training.base_model.made import make_tokenizer, train_made
from training.base_model.perplexity import perplexity
from training.base_model.text import item_texts
from training.items.dataset import Dataset
from training.learning.batches import derive_seed

if TYPE_CHECKING:
    from training.pipeline import StageContext

_MEASURED_CONTEXT_TOKENS = 256


def run(context: StageContext) -> dict[str, Any]:
    """Bring the base model into the run's folder and measure it."""
    config, seed = context.recipe.base_model, context.recipe.seed
    texts = item_texts(Dataset.load(context.of("items")).items)
    train_texts, held_out = split_texts(texts, config.held_out_share, seed)
    losses: list[Any] = []
    if not config.is_made:
        model, tokenizer = load_model(config.name, revision=config.revision)
    else:
        tokenizer = make_tokenizer(train_texts, config.made.vocab_size)
        model, losses = train_made(config.made, tokenizer, train_texts, seed=seed, directory=context.dir)
    save_model(model, tokenizer, context.dir / "model")
    measured = perplexity(
        model.to(pick_device()),
        tokenizer,
        held_out,
        context_tokens=config.made.context_tokens if config.is_made else _MEASURED_CONTEXT_TOKENS,
        max_tokens=config.held_out_tokens,
    )
    summary = {
        "base model": config.name,
        "architecture": type(model).__name__,
        "parameters": num_parameters(model),
        "vocabulary": len(tokenizer),
        "held-out perplexity": round(measured.per_token, 3),
        "held-out bits per byte": round(measured.bits_per_byte, 4),
        "held-out tokens": measured.num_tokens,
    }
    about = json.dumps(summary | {"losses": losses}, indent=2)
    (context.dir / "perplexity.json").write_text(about + "\n", encoding="utf-8")
    (context.dir / "checkpoint.st").unlink(missing_ok=True)
    return summary


def split_texts(texts: list[str], held_out_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Items' texts to learn from, and those held out; at least one of each."""
    order = np.random.default_rng(derive_seed(seed, "base_model", "held out")).permutation(len(texts))
    num_held_out = min(max(1, round(held_out_share * len(texts))), len(texts) - 1)
    held_out = set(order[:num_held_out].tolist())
    return (
        [text for index, text in enumerate(texts) if index not in held_out],
        [texts[index] for index in sorted(held_out)],
    )
