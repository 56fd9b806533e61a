"""Make a small language model from the items' own text: tokenizer, architecture, training."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from training.base_model.config import MadeConfig
from training.base_model.load import pick_device
from training.base_model.perplexity import text_examples
from training.learning.batches import Batches, derive_seed
from training.learning.loop import Loop, LoopSettings
from training.learning.objective import NextTokenLoss
from training.learning.precision import choose_attention
from training.learning.ranks import Ranks
from training.learning.schedule import CosineSchedule

BEGIN, END, PADDING = "<|begin|>", "<|end|>", "<|padding|>"
_TIMED_STEPS = 8


def make_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE: every text can be written, and no text is an unknown token.

    Args:
        texts: what to learn from.
        vocab_size: most entries, with the three special tokens and the 256 bytes; little text
            gives fewer.
    """
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer
    tokenizer.train_from_iterator(
        texts,
        trainer(
            vocab_size=vocab_size,
            special_tokens=[BEGIN, END, PADDING],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    begin_id = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PADDING
    )


def make_untrained(config: MadeConfig, tokenizer: Any, seed: int) -> Any:
    """A randomly initialized model of the configured size, float32, on the CPU."""
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.02,
    }
    torch.manual_seed(derive_seed(seed, "base_model", "initialization"))
    if config.architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**sizes))
    return LlamaForCausalLM(LlamaConfig(**sizes))


def train_made(
    config: MadeConfig, tokenizer: Any, texts: Sequence[str], *, seed: int, directory: Path
) -> tuple[Any, list[Any]]:
    """Train by next-token prediction; resumes from what lies in `directory`.

    Returns:
        (model in eval mode, [[step, mean training loss], ...]).
    """
    device = pick_device()
    model = make_untrained(config, tokenizer, seed).to(device)
    examples = text_examples(tokenizer, texts, context_tokens=config.context_tokens, with_end=True)
    batches = Batches([(examples, config.batch_size)], seed=derive_seed(seed, "base_model", "order"))
    objective = NextTokenLoss(model)
    steps = config.steps
    if config.seconds is not None:
        steps = Ranks.current().agree(
            _steps_for(config.seconds, objective, batches, directory / "budget.json")
        )
    schedule = CosineSchedule(
        config.learning_rate, 0.1 * config.learning_rate, warmup_steps=max(1, steps // 20), steps=steps
    )
    settings = LoopSettings(
        schedule=schedule,
        seed=derive_seed(seed, "base_model", "loop"),
        weight_decay=config.weight_decay,
        precision=config.precision,
        title="base model",
    )
    choose_attention(model, config.precision)
    model.train()
    loop = Loop(
        objective, dict(model.named_parameters()), batches, settings, checkpoint=directory / "checkpoint.st"
    )
    loop.run()
    return model.eval(), loop.state["losses"]


def _steps_for(seconds: float, objective: NextTokenLoss, batches: Batches, note: Path) -> int:
    """Turn a time budget into a number of steps, once: a resumed run reads the note."""
    if note.exists():
        return int(json.loads(note.read_text())["steps"])
    began = time.perf_counter()
    for step in range(_TIMED_STEPS):
        for micro in batches.at(step):
            placed = micro.to(next(objective.parameters()).device)
            objective(placed.ids, placed.is_label, placed.lengths).backward()
    objective.zero_grad(set_to_none=True)
    per_step = (time.perf_counter() - began) / _TIMED_STEPS
    steps = max(10, int(seconds / per_step))
    temporary = note.with_suffix(".tmp")
    temporary.write_text(json.dumps({"steps": steps, "seconds_per_step": per_step}))
    temporary.replace(note)
    return steps
