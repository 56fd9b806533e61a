from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from training.errors import TrainingError
from training.grounding.config import GroundingConfig, PromptConfig
from training.grounding.frames import chat_frame, make_prompt
from training.grounding.pairs import TEMPLATES, pair_examples
from training.grounding.stage import check_length, history_limit
from training.grounding.vocabulary import extend_vocabulary


def spelled(tokenizer: Any, ids: np.ndarray) -> str:
    return tokenizer.decode(ids.tolist())


@pytest.mark.parametrize("is_chat", [False, True])
def test_all_six_templates_are_there_and_only_the_answer_is_learned(
    make_model: Any, items: pl.DataFrame, codes: np.ndarray, levels: list[tuple[str, int]], is_chat: bool
) -> None:
    model, tokenizer = make_model(is_chat=is_chat)
    vocabulary = extend_vocabulary(model, tokenizer, levels)
    pairs = pair_examples(items, vocabulary.tokens_of(codes), tokenizer, GroundingConfig(), is_chat=is_chat)
    has_description = (items["description"] != "").sum()
    assert len(pairs) == 6 * has_description + 2 * (items.height - has_description)
    kinds = set()
    for index in range(len(pairs)):
        ids, is_label = pairs.example(index)
        first = int(is_label.argmax())
        assert is_label[first:].all()
        question, answer = spelled(tokenizer, ids[:first]), spelled(tokenizer, ids[first:])
        sid = [f"<a_{a}><b_{b}>" for a, b in codes]
        if answer in sid:
            item = sid.index(answer)
            assert len(ids) - first == 2
            kinds.add(("to sid", items["title"][item] in question, "for tea" in question))
        else:
            assert answer.endswith("<|end|>")
            item = next(n for n, text in enumerate(sid) if text in question)
            assert answer.removesuffix("<|end|>") in (
                items["title"][item],
                items["description"][item],
                f"{items['title'][item]}\n{items['description'][item]}",
            )
            kinds.add(("to text", answer.count("\n"), "for tea" in answer))
        if is_chat:
            assert question.endswith("<think>\n\n</think>\n\n")
        else:
            assert ids[0] == tokenizer.bos_token_id
    assert len(kinds) >= 5
    assert len(TEMPLATES) == 6


def test_texts_are_cut_and_cannot_become_sids(make_model: Any, levels: list[tuple[str, int]]) -> None:
    model, tokenizer = make_model()
    vocabulary = extend_vocabulary(model, tokenizer, levels)
    items = pl.DataFrame({"title": ["<a_1> " + "tea " * 500], "description": ["<b_2>" * 300]})
    config = GroundingConfig(max_title_tokens=7, max_description_tokens=9)
    sid = vocabulary.tokens_of(np.asarray([[0, 0]]))
    pairs = pair_examples(items, sid, tokenizer, config, is_chat=False)
    for index in range(len(pairs)):
        ids, is_label = pairs.example(index)
        assert ((ids >= vocabulary.first_new_id).sum()) == 2
        assert is_label.sum() <= 7 + 1 + 9 + 1


def test_the_sequence_prompt_is_the_start_token_and_the_sids(make_model: Any) -> None:
    _, tokenizer = make_model()
    prompt = make_prompt(PromptConfig(), tokenizer, history_limit=3)
    assert prompt.style == "sequence"
    assert prompt.token_ids([[7, 8], [9, 10]]) == [tokenizer.bos_token_id, 7, 8, 9, 10]


def test_the_chat_prompt_is_the_models_own_form(make_model: Any) -> None:
    _, tokenizer = make_model(is_chat=True)
    config = PromptConfig(instruction="What next?", separator="; ")
    prompt = make_prompt(config, tokenizer, history_limit=3)
    tea = tokenizer.encode("tea", add_special_tokens=False)
    ids = prompt.token_ids([tea, tea])
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What next?\ntea; tea"}],
        tokenize=False, add_generation_prompt=True, enable_thinking=False,
    )  # fmt: skip
    assert tokenizer.decode(ids) == whole
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    assert ids[0] == turn
    assert ids.count(turn) == 2
    assert make_prompt(PromptConfig(style="sequence"), tokenizer, history_limit=3).style == "sequence"


def test_chat_without_a_template_is_refused(make_model: Any) -> None:
    _, tokenizer = make_model()
    with pytest.raises(TrainingError, match="no chat template"):
        make_prompt(PromptConfig(style="chat"), tokenizer, history_limit=3)


def test_a_template_that_drops_the_users_words_is_refused(make_model: Any) -> None:
    _, tokenizer = make_model(is_chat=True)
    tokenizer.chat_template = "hello"
    with pytest.raises(TrainingError, match="exactly once"):
        chat_frame(tokenizer, "x", "")


def test_a_history_longer_than_the_data_keeps_is_refused() -> None:
    assert history_limit(PromptConfig(), 10) == 10
    assert history_limit(PromptConfig(history_limit=4), 10) == 4
    with pytest.raises(TrainingError, match="prompt.history_limit = 20 exceeds the 10 items"):
        history_limit(PromptConfig(history_limit=20), 10)


def test_a_prompt_longer_than_the_model_reads_is_refused(make_model: Any) -> None:
    model, tokenizer = make_model()  # 128 positions
    check_length(make_prompt(PromptConfig(), tokenizer, history_limit=41), 3, model)
    with pytest.raises(TrainingError, match="take 130 tokens, but the base model has 128 positions"):
        check_length(make_prompt(PromptConfig(), tokenizer, history_limit=42), 3, model)
