from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from training.base_model.config import MadeConfig
from training.base_model.load import load_model, save_model
from training.base_model.made import make_tokenizer, make_untrained, train_made
from training.base_model.perplexity import perplexity, text_examples
from training.base_model.stage import split_texts
from training.base_model.text import encode_plain
from training.errors import TrainingError
from training.learning import loop as loop_module

TINY_STORIES = Path(__file__).parents[3] / ".." / "shared" / "weights" / "TinyStories-656K"
TEXTS = [
    f"The {colour} {thing} holds {n} cups of tea.\nMade of wood & \u00e9mail."
    for n in range(3)
    for colour in ("red", "blue", "green")
    for thing in ("pot", "bowl", "jug", "kettle")
]
SMALL = MadeConfig(
    num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48,
    vocab_size=320, steps=12, batch_size=4, context_tokens=32, max_positions=64, precision="fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(TEXTS, SMALL.vocab_size)


def test_the_made_tokenizer_writes_any_text(tokenizer: Any) -> None:
    for text in [*TEXTS[:3], "unseen \u4e2d\u6587 \U0001f600 \x00", "  spaces  ", ""]:
        assert tokenizer.decode(encode_plain(tokenizer, [text])[0]) == text
    assert tokenizer("tea")["input_ids"][0] == tokenizer.bos_token_id


def test_plain_text_never_becomes_a_control_token(tokenizer: Any) -> None:
    ids = encode_plain(tokenizer, ["<|begin|> tea <|end|>"])[0]
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)


def test_long_texts_are_cut_and_every_token_but_the_firsts_is_learned(tokenizer: Any) -> None:
    ids = encode_plain(tokenizer, ["tea " * 40])[0]
    examples = text_examples(tokenizer, ["tea " * 40], context_tokens=16, with_end=True)
    assert examples.tokens.tolist() == [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    assert max(examples.lengths) == 16
    assert examples.num_labels == len(examples.tokens) - len(examples)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_made_models_have_the_stated_form_and_load_again(
    tokenizer: Any, tmp_path: Path, architecture: Any, is_tied: bool
) -> None:
    config = SMALL.model_copy(update={"architecture": architecture, "tie_embeddings": is_tied})
    model = make_untrained(config, tokenizer, seed=0)
    save_model(model, tokenizer, tmp_path / "model")
    loaded, loaded_tokenizer = load_model(tmp_path / "model")
    assert type(loaded) is type(model)
    assert loaded.config.tie_word_embeddings is is_tied
    assert all(one.equal(other) for one, other in zip(model.parameters(), loaded.parameters(), strict=True))
    assert loaded_tokenizer("A red pot")["input_ids"] == tokenizer("A red pot")["input_ids"]
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert not {"top_k", "top_p", "temperature", "do_sample"} & set(generation)


def test_training_is_deterministic_and_learns(tokenizer: Any, tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.append(train_made(SMALL, tokenizer, TEXTS, seed=0, directory=tmp_path / name))
    for one, other in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
        assert one.equal(other)
    assert runs[0][1][-1][1] < runs[0][1][0][1] - 0.3


def test_killed_and_resumed_gives_the_same_model(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.model_copy(update={"seconds": 0.2})
    whole = tmp_path / "whole"
    whole.mkdir()
    expected, _ = train_made(config, tokenizer, TEXTS, seed=0, directory=whole)
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "budget.json").write_text((whole / "budget.json").read_text())
    take_step = loop_module.Loop._train_step

    def killed_at_seven(self: Any, step: int) -> float:
        if step == 7:
            self._save()
            raise KeyboardInterrupt
        return take_step(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop_module.Loop, "_train_step", killed_at_seven)
        train_made(config, tokenizer, TEXTS, seed=0, directory=killed)
    resumed, _ = train_made(config, tokenizer, TEXTS, seed=0, directory=killed)
    assert all(
        one.equal(other) for one, other in zip(expected.parameters(), resumed.parameters(), strict=True)
    )


@torch.no_grad()
def test_perplexity_is_exp_of_the_mean_loss(tokenizer: Any) -> None:
    model = make_untrained(SMALL, tokenizer, seed=0).eval()
    found = perplexity(model, tokenizer, TEXTS[:2], context_tokens=64, max_tokens=10_000)
    total, count = 0.0, 0
    for text in TEXTS[:2]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        count += ids.shape[1] - 1
        total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
    assert found.num_tokens == count
    assert found.per_token == pytest.approx(math.exp(total / count), rel=1e-4)
    num_bytes = sum(len(text.encode()) for text in TEXTS[:2])
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / num_bytes, rel=1e-4)


def test_held_out_texts_are_not_learned_from() -> None:
    texts = [str(n) for n in range(40)]
    train, held_out = split_texts(texts, 0.1, seed=0)
    assert len(held_out) == 4
    assert sorted(train + held_out, key=int) == texts
    assert split_texts(texts, 0.1, seed=0) == (train, held_out)
    assert len(split_texts(["a", "b"], 0.5, seed=0)[0]) == 1


def test_a_model_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"cannot be loaded: .*base_model.name = 'made'"):
        load_model(tmp_path / "missing")


def test_an_architecture_that_cannot_be_served_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    )
    with pytest.raises(TrainingError, match="GPT2LMHeadModel; this project trains"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": 6, "num_kv_heads": 4}, "must divide num_heads"),
        ({"head_dim": 9}, "must be even"),
        ({"context_tokens": 512, "max_positions": 256}, "must not exceed max_positions"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        MadeConfig(**changes)


@pytest.mark.skipif(not TINY_STORIES.exists(), reason="../shared/weights/TinyStories-656K is not here")
def test_a_pretrained_miniature_is_read_by_path() -> None:
    model, tokenizer = load_model(TINY_STORIES)
    story = ["Once upon a time there was a little girl named Lily. She loved to play in the park. "]
    nonsense = ["Park the in play loved girl. Lily to a she was time upon little named there once. "]
    known = perplexity(model, tokenizer, story, context_tokens=128, max_tokens=1000)
    unknown = perplexity(model, tokenizer, nonsense, context_tokens=128, max_tokens=1000)
    assert known.bits_per_byte < 1.2 < 2 < unknown.bits_per_byte
