"""Load and save language models in plain Hugging Face form."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from service.engine.hf_ops import SUPPORTED
from training.errors import TrainingError


def load_model(source: str | Path, *, revision: str | None = None) -> tuple[Any, Any]:
    """Load a causal LM and its tokenizer, from a folder or a hub.

    Args:
        source: folder in Hugging Face form, or hub name.
        revision: commit or tag of a hub model.

    Returns:
        (model in float32 on the CPU in eval mode, fast tokenizer).

    Raises:
        TrainingError: it cannot be found or read, or is of a kind that cannot be trained here.
    """
    transformers_logging.disable_progress_bar()  # a bar per file read says nothing here
    auto_config: Any = AutoConfig
    auto_model: Any = AutoModelForCausalLM
    try:
        config = auto_config.from_pretrained(str(source), revision=revision)
        _check_architecture(source, config)
        model = auto_model.from_pretrained(
            str(source), revision=revision, dtype=torch.float32, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(source), revision=revision)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"the base model '{source}' cannot be loaded: {_first_sentence(error)}. Give a hub name (if this "
            "machine reaches a hub) or a folder with config.json, model.safetensors and tokenizer.json, "
            "or base_model.name = 'made'"
        ) from error
    if not tokenizer.is_fast:
        raise TrainingError(f"the base model '{source}' has no tokenizer.json, which is needed here")
    return model.eval(), tokenizer


def _check_architecture(source: str | Path, config: Any) -> None:
    names = getattr(config, "architectures", None) or ["an unnamed architecture"]
    if names[0] not in SUPPORTED:
        raise TrainingError(
            f"the base model '{source}' is {names[0]}; this project trains {', '.join(SUPPORTED)}"
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise TrainingError(
            f"the base model '{source}' uses {', '.join(sorted(kinds))}; only full attention is served"
        )


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def save_model(model: nn.Module, tokenizer: Any, directory: Path) -> None:
    """Save model and tokenizer; the folder appears whole or not at all.

    The generation config is written clean: an instruct model's top_k and top_p would silently
    break constrained beams.
    """
    plain: Any = model
    config = plain.config
    plain.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    transformers_logging.disable_progress_bar()
    plain.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    for file in temporary.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def pick_device() -> torch.device:
    """The accelerator if this machine has one (of several processes: each its own), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def num_parameters(model: nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
