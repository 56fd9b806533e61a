from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from training.base_model.config import MadeConfig
from training.base_model.made import make_tokenizer, make_untrained
from training.errors import TrainingError
from training.finetuning.config import LoraConfig
from training.finetuning.lora import add_lora, merge_lora
from training.learning.objective import NextTokenLoss

CONFIG = LoraConfig(rank=2, alpha=8, dropout=0.0)
IDS = torch.arange(1, 25).view(2, 12)


def make_model(*, is_tied: bool = True) -> Any:
    config = MadeConfig(
        num_layers=2, hidden_size=32, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48,
        max_positions=64, context_tokens=32, tie_embeddings=is_tied,
    )  # fmt: skip
    return make_untrained(config, make_tokenizer(["abc"], 300), seed=0).eval()


def train(model: nn.Module) -> None:
    """A few plain steps on whatever is trainable."""
    objective = NextTokenLoss(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    is_label = torch.ones_like(IDS, dtype=torch.bool)
    is_label[:, 0] = False
    for _ in range(5):
        objective(IDS, is_label).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits


def test_adapters_add_nothing_before_they_are_trained() -> None:
    pytest.importorskip("peft")
    model = make_model()
    before = logits(model)
    add_lora(model, CONFIG, seed=0)
    torch.testing.assert_close(logits(model), before)


@pytest.mark.parametrize("is_tied", [True, False])
def test_merging_leaves_a_plain_model_that_says_the_same(is_tied: bool) -> None:
    pytest.importorskip("peft")
    model = make_model(is_tied=is_tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_lora(model, CONFIG, seed=0)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all("lora_" in name or name in ("model.embed_tokens.weight", "lm_head.weight") for name in trained)
    assert ("lm_head.weight" in trained) == (not is_tied)
    train(model)
    adapted = logits(model)
    merge_lora(model)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert set(after) == set(before)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == is_tied
    for name, value in after.items():
        is_norm = "norm" in name
        assert value.equal(before[name]) == is_norm, name
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear


def test_only_the_named_projections_get_adapters_and_the_seed_decides_them() -> None:
    pytest.importorskip("peft")
    models = [make_model() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        add_lora(model, CONFIG.model_copy(update={"modules": ("q_proj",)}), seed=seed)
    names = [name for name, _ in models[0].named_parameters() if "lora_" in name]
    assert names
    assert all("q_proj" in name for name in names)
    first, same, other = (dict(model.named_parameters())[names[0]] for model in models)
    assert first.equal(same)
    assert not first.equal(other)


def test_without_peft_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TrainingError, match=r"needs the package peft: pip install peft, or set"):
        add_lora(make_model(), CONFIG, seed=0)
