from __future__ import annotations

from typing import Any

import pytest
import torch

from training.learning import objective as objective_module
from training.learning.batches import micro_batches
from training.learning.examples import Examples
from training.learning.objective import NextTokenLoss

PAIRS = [([1, 5, 7], [12, 22, 32]), ([1], [11, 21, 31]), ([1, 9, 9, 9, 9], [10, 20, 30])]


def whole_batch() -> Any:
    examples = Examples.of_answers(PAIRS)
    (micro,) = micro_batches([examples.example(i) for i in range(len(examples))], 1000)
    return micro


@torch.no_grad()
def test_loss_is_taken_on_the_answer_only_and_padding_is_not_seen(tiny_model: Any) -> None:
    micro = whole_batch()
    found = NextTokenLoss(tiny_model)(micro.ids, micro.is_label)
    expected = torch.zeros(())
    for prompt, answer in PAIRS:
        ids = torch.tensor([[*prompt, *answer]])
        logprobs = tiny_model(ids).logits.log_softmax(-1)[0]
        for offset, token in enumerate(answer):
            expected -= logprobs[len(prompt) + offset - 1, token]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_chunks_give_the_same_loss_and_gradient(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    micro = whole_batch()
    results = []
    for limit in (10**9, 2 * 4 * 40):
        monkeypatch.setattr(objective_module, "_MAX_LOGITS_BYTES", limit)
        tiny_model.zero_grad()
        loss = NextTokenLoss(tiny_model)(micro.ids, micro.is_label)
        loss.backward()
        results.append((loss.detach(), tiny_model.model.embed_tokens.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_smoothing_spreads_over_the_codes_of_the_level_only(tiny_model: Any) -> None:
    micro = whole_batch()
    levels = [(10, 10), (20, 10)]  # tokens 30.. belong to no level
    found = NextTokenLoss(tiny_model, label_smoothing=0.2, levels=levels)(micro.ids, micro.is_label)
    expected = torch.zeros(())
    for prompt, answer in PAIRS:
        logprobs = tiny_model(torch.tensor([[*prompt, *answer]])).logits.log_softmax(-1)[0]
        for offset, token in enumerate(answer):
            row = logprobs[len(prompt) + offset - 1]
            if token >= 30:
                expected -= row[token]
            else:
                first = token // 10 * 10
                expected -= 0.8 * row[token] + 0.2 * row[first : first + 10].mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_no_label_gives_no_loss(tiny_model: Any) -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    assert NextTokenLoss(tiny_model)(ids, torch.zeros(2, 3, dtype=torch.bool)).item() == 0.0
