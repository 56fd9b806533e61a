from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from training.learning.batches import MicroBatch, micro_batches
from training.learning.dropout import dropout
from training.learning.examples import Examples
from training.learning.fused import pick_rows, rms_norm, rotate, spread_rows, swiglu
from training.learning.objective import NextTokenLoss, in_chunks, labelled
from training.learning.packed import can_pack

SIZES: Any = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
FORMS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
}


def make(form: str) -> Any:
    model, config, more = FORMS[form]
    sizes = {**SIZES, **more}
    if form == "qwen2":
        del sizes["head_dim"]
    torch.manual_seed(3)
    made = model(config(**sizes))
    for parameter in made.parameters():  # norms and biases too: ones and zeros would hide an error
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return made.eval()


def batch_of(lengths: list[int]) -> MicroBatch:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(40, (n,), generator=generator).tolist() for n in lengths]
    examples = Examples.of_answers(
        [(row[: n // 2], row[n // 2 :]) for row, n in zip(rows, lengths, strict=True)]
    )
    (batch,) = micro_batches([examples.example(i) for i in range(len(examples))], 10_000)
    return batch


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [[2, 9, 17, 5, 17], [16, 16, 16, 16], [3]])
def test_loss_and_gradients_are_those_of_hugging_face(form: str, lengths: list[int]) -> None:
    model, batch = make(form), batch_of(lengths)
    objective = NextTokenLoss(model)
    assert can_pack(model)
    found = objective(batch.ids, batch.is_label, batch.lengths)
    found.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    states, targets = labelled(hidden, batch.ids, batch.is_label)
    expected = in_chunks(objective._loss, states, targets, 40)
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=2e-4, msg=name)


@torch.no_grad()
def test_bfloat16_is_near_float32_and_dropout_hooks_still_act() -> None:
    model, batch = make("qwen3"), batch_of([20, 31, 7, 12])
    objective = NextTokenLoss(model)
    exact = objective(batch.ids, batch.is_label, batch.lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = objective(batch.ids, batch.is_label, batch.lengths)
    assert near.dtype == torch.float32
    assert abs(float(near) / float(exact) - 1) < 0.02
    model.train()
    with dropout(model, embedding=0.3, residual=0.3, attention=0.0):
        dropped = objective(batch.ids, batch.is_label, batch.lengths)
    assert abs(float(dropped) / float(exact) - 1) > 1e-4
    assert float(objective(batch.ids, batch.is_label, batch.lengths)) == pytest.approx(float(exact), rel=1e-6)


def test_a_window_of_attention_is_left_to_hugging_face() -> None:
    config = MistralConfig(**{**SIZES, "sliding_window": 4})
    model: Any = MistralForCausalLM(config).eval()
    batch = batch_of([9, 12])
    assert not can_pack(model)
    logits = model(batch.ids).logits.log_softmax(-1)
    expected = sum(-logits[row, at - 1, batch.ids[row, at]] for row, at in batch.is_label.nonzero().tolist())
    found = NextTokenLoss(model)(batch.ids, batch.is_label, batch.lengths)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_hand_written_gradients_hold_against_differences() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 2, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    up, angle = torch.randn(3, 2, 6, dtype=torch.float64), torch.randn(3, 1, 3, dtype=torch.float64)
    cos, sin = (torch.cat([part, part], -1) for part in (angle.cos(), angle.sin()))
    places = torch.tensor([4, 0, 2])
    for tensor in (x, weight, up):
        tensor.requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda x, w: rms_norm(x, w, 1e-6, torch.float64), (x, weight))
    assert check(swiglu, (x, up))
    assert check(lambda x: rotate(x, cos, sin), (x,))
    assert check(lambda x: spread_rows(x, places, 6), (x,))
    assert check(lambda x: pick_rows(spread_rows(x, places, 6), places), (x,))
    assert torch.equal(pick_rows(spread_rows(x, places, 6), places), x)
