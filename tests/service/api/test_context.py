"""Free text beside the history: read by a bundle that was trained with it, refused by any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from service.bundle import Bundle, ContextFrame, ContextReader, PromptTemplate, load_bundle, write_bundle
from service.decoding.trie import Trie
from service.errors import BundleError

pytestmark = pytest.mark.anyio

BEFORE, AFTER = 2, 3
LETTERS = list("abcdefghijklmnopqrstuvwxyz<>_0123456789 ")


def write_tokenizer(directory: Path, first_sid_id: int) -> None:
    """Character-level, so that every text has tokens; the SID tokens follow, as special tokens."""
    vocabulary = {f"<unused_{n}>": n for n in range(5)}
    vocabulary |= {letter: 5 + n for n, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unused_0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = [f"<{letter}_{code}>" for letter in "abc" for code in range(4)]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    assert tokenizer.token_to_id("<a_0>") == first_sid_id
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def talking_bundle(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle with other token ids, a tokenizer and a place for free text."""
    root = tmp_path_factory.mktemp("talking")
    (root / "model").mkdir()
    config = {"architectures": ["Qwen3ForCausalLM"], "vocab_size": 128}
    (root / "model" / "config.json").write_text(json.dumps(config))
    (root / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    first = len(LETTERS) + 5
    write_tokenizer(root / "model", first)
    levels = [
        level.model_copy(update={"first_token_id": first + 4 * n})
        for n, level in enumerate(small_bundle.manifest.levels)
    ]
    frame = ContextFrame(before_token_ids=(BEFORE,), after_token_ids=(AFTER,), max_tokens=8)
    write_bundle(
        root / "bundle",
        name="talking",
        model_dir=root / "model",
        codes=small_bundle.semantic_ids.astype(int),
        items=small_bundle.items.with_columns(pl.col("popularity").cast(pl.Int64)),
        levels=levels,
        prompt=PromptTemplate(style="sequence", history_limit=5, prefix_token_ids=(1,), context=frame),
        build_trie=Trie.build,
        context_trained=True,
    )
    return load_bundle(root / "bundle")


async def ask(running: Any, status: int = 200, **body: Any) -> Any:
    response = await running.client.post("/recommend", json=body)
    assert response.status_code == status, response.text
    return response.json()


def spelled(text: str) -> list[int]:
    return [5 + LETTERS.index(letter) for letter in text]


async def test_the_text_stands_between_prefix_and_history(start_app: Any, talking_bundle: Bundle) -> None:
    async with start_app(bundle=talking_bundle) as running:
        answer = await ask(running, history=["item-5"], context="  red \n lamp ", k=3)
        prompt = list(running.engine.requests[-1].prompt_token_ids)
        row = talking_bundle.row_of["item-5"]
        sid = talking_bundle.manifest.tokens_of(talking_bundle.semantic_ids[row]).tolist()
        assert prompt == [1, BEFORE, *spelled("red lamp"), AFTER, *sid]
        assert answer["items"][0]["source"] == "model"


async def test_a_text_alone_is_enough(start_app: Any, talking_bundle: Bundle) -> None:
    async with start_app(bundle=talking_bundle) as running:
        answer = await ask(running, context="lamp", k=3)
        assert [item["source"] for item in answer["items"]] == ["model"] * 3
        assert list(running.engine.requests[-1].prompt_token_ids) == [1, BEFORE, *spelled("lamp"), AFTER]
        for nothing in ("", "  \n"):
            answer = await ask(running, context=nothing, k=3)
            assert [item["source"] for item in answer["items"]] == ["popular"] * 3


async def test_long_texts_are_cut_and_very_long_ones_refused(start_app: Any, talking_bundle: Bundle) -> None:
    async with start_app(bundle=talking_bundle) as running:
        await ask(running, history=["item-5"], context="x" * 900)
        prompt = list(running.engine.requests[-1].prompt_token_ids)
        assert prompt.count(spelled("x")[0]) == 8
        assert len(prompt) <= talking_bundle.manifest.prompt.max_tokens(3)
        refused = await ask(running, 422, history=["item-5"], context="x" * 1001)
        assert "context" in refused["error"]


@pytest.mark.parametrize("text", ["<a_1>", "<a_1><b_2><c_3>", " <c_0> ", "<A_1>"])
async def test_no_text_becomes_a_sid_token(start_app: Any, talking_bundle: Bundle, text: str) -> None:
    first = talking_bundle.manifest.levels[0].first_token_id
    async with start_app(bundle=talking_bundle) as running:
        await ask(running, context=text)
        prompt = running.engine.requests[-1].prompt_token_ids
        assert max(prompt) < first


async def test_a_bundle_without_free_text_says_so(start_app: Any, small_bundle: Bundle) -> None:
    async with start_app() as running:
        refused = await ask(running, 422, history=["item-5"], context="red")
        assert "trained with free text" in refused["error"] and "prompt.context_share" in refused["error"]
        await ask(running, history=["item-5"], context="")
        limits = (await running.client.get("/info")).json()["limits"]
        assert limits["context_trained"] is False and limits["max_context_tokens"] == 0


async def test_info_says_how_much_is_read(start_app: Any, talking_bundle: Bundle) -> None:
    async with start_app(bundle=talking_bundle) as running:
        limits = (await running.client.get("/info")).json()["limits"]
        assert limits["context_trained"] is True and limits["max_context_tokens"] == 8


def test_a_missing_or_damaged_tokenizer_is_explained(talking_bundle: Bundle, tmp_path: Path) -> None:
    levels = talking_bundle.manifest.levels
    with pytest.raises(BundleError, match="no free text can be read"):
        ContextReader.open(tmp_path, levels)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        ContextReader.open(tmp_path, levels)


def test_without_a_frame_nothing_changes_in_the_manifest(small_bundle: Bundle) -> None:
    assert "context" not in json.loads(small_bundle.manifest.to_json())["prompt"]
    with pytest.raises(ValueError, match="no place for free text"):
        small_bundle.manifest.prompt.token_ids([], [5])
    claimed = small_bundle.manifest.model_dump() | {"context_trained": True}
    with pytest.raises(ValueError, match="no place for free text"):
        type(small_bundle.manifest).model_validate(claimed)
