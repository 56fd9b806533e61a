from __future__ import annotations

from typing import Any

import torch

from training.learning.dropout import _cheap_dropout, dropout


def hidden_of(model: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return model.model(torch.arange(12)[None]).last_hidden_state


@torch.no_grad()
def test_dropout_acts_in_training_mode_only_and_leaves_no_trace(tiny_model: Any) -> None:
    plain = hidden_of(tiny_model)
    with dropout(tiny_model, embedding=0.5, residual=0.5, attention=0.5):
        assert hidden_of(tiny_model).equal(plain)
        tiny_model.train()
        assert not torch.allclose(hidden_of(tiny_model), plain)
        tiny_model.eval()
    tiny_model.train()
    assert torch.allclose(hidden_of(tiny_model), plain)
    assert all(block.self_attn.attention_dropout == 0 for block in tiny_model.model.layers)


@torch.no_grad()
def test_each_place_of_dropout_counts(tiny_model: Any) -> None:
    tiny_model.train()
    plain = hidden_of(tiny_model)
    for place in ("embedding", "residual", "attention"):
        shares = {"embedding": 0.0, "residual": 0.0, "attention": 0.0, place: 0.5}
        with dropout(tiny_model, **shares):
            assert not torch.allclose(hidden_of(tiny_model), plain), place


def test_cheap_dropout_keeps_the_mean_and_drops_the_stated_share() -> None:
    torch.manual_seed(0)
    values = torch.ones(1001, 257, requires_grad=True)
    dropped = _cheap_dropout(values, 0.2)
    dropped.sum().backward()
    found = dropped.detach()
    assert abs(float((found == 0).float().mean()) - 51 / 256) < 0.003
    assert abs(float(found.mean()) - 1) < 0.003
    assert values.grad is not None
    assert values.grad.equal(found)  # the same units, with the same scale
