"""LoRA through peft: small adapters are trained instead of the big matrices, and merged at the end.

The token matrices are trained whole: the rows of the SID tokens are new, and no adapter could hold
them. After merging, the model is a plain Hugging Face model again, with its tied matrices still one
(saving them through peft would make two of them).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training.errors import TrainingError
from training.finetuning.config import LoraConfig
from training.grounding.vocabulary import token_matrices
from training.learning.batches import derive_seed


def add_lora(model: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Put adapters beside the projections of every block, in place; all else but the token rows is frozen.

    The adapters add nothing until they are trained.

    Args:
        model: Hugging Face causal LM.
        config: rank, strength, dropout and which projections.
        seed: of the adapters' random half.

    Raises:
        TrainingError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise TrainingError(
            "finetuning.lora needs the package peft: pip install peft, or set finetuning.lora.rank = 0"
        ) from error
    torch.manual_seed(derive_seed(seed, "finetuning", "lora"))
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.modules),
        bias="none",
    )
    peft.inject_adapter_in_model(settings, model)
    for matrix in token_matrices(model).values():
        matrix.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Add what the adapters learned to the matrices they stand beside, and take them away; in place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if not isinstance(module, LoraLayer):
            continue
        layer: Any = module
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    vars(model).pop("peft_config", None)
    model.requires_grad_(True)
