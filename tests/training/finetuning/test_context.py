"""Free text in training: drawn from the target's words, spelled as served, and heard by the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from service.bundle import ContextReader, PromptTemplate
from service.engine.torch_engine import TorchDecoder
from training.base_model.config import MadeConfig
from training.base_model.load import save_model
from training.base_model.made import make_tokenizer, make_untrained
from training.base_model.text import encode_plain
from training.evaluation.config import EvaluationConfig
from training.evaluation.context_effect import measure_context
from training.evaluation.evaluate import RowDecoder
from training.evaluation.serving_order import ServingOrder
from training.finetuning.config import FinetuningConfig
from training.finetuning.examples import context_examples, sequence_examples
from training.finetuning.train import Material, finetune
from training.finetuning.validation import ValidationProbe
from training.grounding.config import PromptConfig
from training.grounding.frames import make_prompt
from training.grounding.vocabulary import Vocabulary, extend_vocabulary
from training.items.context_text import draw_contexts
from training.items.dataset import ROW_SCHEMA, Dataset

WORDS = ["anvil", "basket", "candle", "drum", "easel", "fork", "globe", "hammer"]
KINDS = ["old", "new"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Sixteen items; what comes next has nothing to do with what came before."""
    items = pl.DataFrame(
        {
            "item_id": [f"i{n:02}" for n in range(16)],
            "title": [f"{KINDS[n // 8]}{WORDS[n % 8]}" for n in range(16)],
            "description": [""] * 16,
            "metadata": [
                json.dumps({"kind": f"{KINDS[n // 8]} {WORDS[n % 8]}", "price": "12.5"}) for n in range(16)
            ],
        }
    )
    rng = np.random.default_rng(0)
    rows = []
    for user in range(150):
        walk = rng.integers(0, 16, 5).tolist()
        rows += [(f"u{user}", walk[:at], walk[at]) for at in range(1, 5)]
    frame = pl.DataFrame(rows, schema=ROW_SCHEMA, orient="row")
    at = pl.int_range(pl.len()).over("user_id")
    train, valid, test = (frame.filter(part) for part in (at < 2, at == 2, at == 3))
    return Dataset.make(items, train, valid, test, history_limit=4, name="random")


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.array([[n // 4, n % 4] for n in range(16)], dtype=np.int32)


@pytest.fixture
def parts(tmp_path: Path, dataset: Dataset) -> tuple[Any, Any, Vocabulary, PromptTemplate, ContextReader]:
    config = MadeConfig(
        num_layers=2, hidden_size=48, num_heads=2, num_kv_heads=2, head_dim=24, intermediate_size=96,
        vocab_size=320, max_positions=64, context_tokens=32,
    )  # fmt: skip
    tokenizer = make_tokenizer([" ".join([*dataset.items["title"], *WORDS, *KINDS])] * 3, config.vocab_size)
    model = make_untrained(config, tokenizer, seed=0)
    vocabulary = extend_vocabulary(model, tokenizer, [("a", 4), ("b", 4)])
    torch.manual_seed(0)
    with torch.no_grad():
        model.get_input_embeddings().weight[vocabulary.first_new_id :].normal_(std=0.02)
    prompt = make_prompt(PromptConfig(context_share=0.5, max_context_tokens=12), tokenizer, 4)
    save_model(model, tokenizer, tmp_path / "model")
    return model, tokenizer, vocabulary, prompt, ContextReader.open(tmp_path / "model", vocabulary.levels)


def test_texts_come_from_the_target(dataset: Dataset) -> None:
    targets = list(range(16)) * 20
    texts = draw_contexts(dataset.items, targets, seed=1)
    for target, text in zip(targets, texts, strict=True):
        title, metadata = dataset.items["title"][target], json.loads(dataset.items["metadata"][target])
        known = {title, *metadata["kind"].split()}
        assert text and set(text.split()) <= known
    assert any("old " in text for text in texts) and not any("12.5" in text for text in texts)
    assert texts == draw_contexts(dataset.items, targets, seed=1)
    assert texts != draw_contexts(dataset.items, targets, seed=2)


@pytest.mark.parametrize("text", ["oldanvil 3", "<a_1><b_2>", "<|endoftext|> red", "Größe 3 €", ""])
def test_serving_reads_a_text_as_training_does(parts: Any, text: str) -> None:
    _, tokenizer, vocabulary, _, reader = parts
    ids = reader.token_ids(text)
    assert ids == encode_plain(tokenizer, [text])[0]
    assert all(token < vocabulary.first_new_id for token in ids)


def test_without_a_share_prompts_have_no_place_for_text(parts: Any) -> None:
    assert make_prompt(PromptConfig(), parts[1], 4).context is None


def test_examples_hold_text_history_and_answer(dataset: Dataset, codes: np.ndarray, parts: Any) -> None:
    _, _, vocabulary, prompt, reader = parts
    examples = context_examples(dataset, vocabulary.tokens_of(codes), prompt, reader, seed=0)
    assert len(examples) == 2 * dataset.train.height
    start = [*prompt.prefix_token_ids, *prompt.context.before_token_ids]
    lengths = []
    for row in range(len(examples)):
        tokens, is_label = examples.example(row)
        target = dataset.train["target"][row % dataset.train.height]
        assert tokens[is_label].tolist() == vocabulary.tokens_of(codes[target]).tolist()
        assert tokens[: len(start)].tolist() == start
        lengths.append(int((tokens[~is_label] >= vocabulary.first_new_id).sum()))
    assert 0 in lengths[dataset.train.height :] and 0 not in lengths[: dataset.train.height]


def test_the_right_text_lifts_the_target(
    dataset: Dataset, codes: np.ndarray, parts: Any, tmp_path: Path
) -> None:
    model, _, vocabulary, prompt, reader = parts
    sid_tokens = vocabulary.tokens_of(codes)
    config = FinetuningConfig(
        epochs=50, batch_size=32, learning_rate=3e-3, validation_rows=10, validation_beam_width=10,
        evaluate_every_epochs=50, precision="fp32", embedding_dropout=0.0, residual_dropout=0.0,
    )  # fmt: skip
    finetune(
        model,
        Material(
            sequence_examples(dataset.train_sequences["items"], sid_tokens, prompt),
            contexts=context_examples(dataset, sid_tokens, prompt, reader, seed=0),
            context_share=0.5,
        ),
        ValidationProbe(dataset, codes, vocabulary.levels, prompt, config),
        config,
        levels=vocabulary.ranges,
        seed=0,
        directory=tmp_path,
    )
    order = ServingOrder.build(dataset, codes, vocabulary.levels)
    asked = EvaluationConfig(num_resamples=100)
    decoder = RowDecoder(
        decoder=TorchDecoder(model, order.trie, vocabulary.levels),
        order=order,
        levels=vocabulary.levels,
        prompt=prompt,
        beam_width=asked.beam_width,
    )
    effect = measure_context(decoder, dataset, dataset.test, reader=reader, config=asked)
    assert effect["right"]["HR@1"] > 3 * effect["none"]["HR@1"]
    assert effect["right"]["mean_rank"] < effect["none"]["mean_rank"] < effect["wrong"]["mean_rank"] + 0.5
    assert effect["right_minus_none"]["HR@1"][0] > 0
