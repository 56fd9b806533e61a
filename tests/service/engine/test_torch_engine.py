"""The torch engine against Hugging Face's own full forward pass of every SID."""

import asyncio
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from service.bundle import Level, PromptTemplate, load_bundle, write_bundle
from service.decoding.search_space import write_catalogue
from service.decoding.trie import Trie
from service.engine.protocol import DecodeRequest, Engine
from service.engine.torch_engine import TorchDecoder, TorchEngine
from service.errors import CatalogueError, EngineDead, EngineError, StaleCatalogue

NUM_TEXT, SIZE, NUM_LEVELS = 60, 12, 3
LEVELS = [
    Level(letter="abc"[n], codebook_size=SIZE, first_token_id=NUM_TEXT + n * SIZE) for n in range(NUM_LEVELS)
]
MODELS = {
    "qwen3-tied": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-untied": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8, "tie_word_embeddings": False}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
}


def make_model(kind: str) -> torch.nn.Module:
    model_class, config_class, extra = MODELS[kind]
    torch.manual_seed(1)
    config = config_class(
        vocab_size=NUM_TEXT + NUM_LEVELS * SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        **extra,
    )
    return model_class(config).eval()


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.unique(np.random.default_rng(0).integers(0, SIZE, (150, NUM_LEVELS)), axis=0)


def exhaustive(model: torch.nn.Module, codes: np.ndarray, prompt: list[int]) -> np.ndarray:
    """log p(SID | prompt) of every SID, one full forward pass each. Shape: (N,)."""
    tokens = codes + np.array([level.first_token_id for level in LEVELS])
    rows = torch.tensor([prompt + sid for sid in tokens.tolist()])
    with torch.inference_mode():
        logprobs = model(rows).logits.log_softmax(-1)
    at = len(prompt) - 1
    return sum(logprobs[range(len(rows)), at + n, rows[:, at + 1 + n]] for n in range(NUM_LEVELS)).numpy()


@pytest.mark.parametrize("kind", MODELS)
def test_full_width_equals_the_exhaustive_ranking(kind: str, codes: np.ndarray) -> None:
    model = make_model(kind)
    decoder = TorchDecoder(model, Trie.build(codes, (SIZE,) * NUM_LEVELS), LEVELS)
    prompts = [[5], [3, 1, 4, 1, 5, 9, 2, 6], [NUM_TEXT, NUM_TEXT + SIZE, NUM_TEXT + 2 * SIZE]]
    for prompt, beams in zip(prompts, decoder.decode(prompts, [len(codes)] * 3), strict=True):
        expected = exhaustive(model, codes, prompt)
        order = np.argsort(-expected, kind="stable")
        assert beams.codes.tolist() == codes[order].tolist()
        assert beams.logprobs == pytest.approx(expected[order], abs=1e-4)


def test_a_batch_gives_what_single_requests_give(codes: np.ndarray) -> None:
    decoder = TorchDecoder(make_model("qwen3-tied"), Trie.build(codes, (SIZE,) * NUM_LEVELS), LEVELS)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, NUM_TEXT, n).tolist() for n in (1, 9, 4, 9)]
    widths = [3, 40, 1, 7]
    excluded = [None, np.arange(0, len(codes), 2), None, np.arange(len(codes) - 2)]
    together = decoder.decode(prompts, widths, excluded)
    for r, beams in enumerate(together):
        (alone,) = decoder.decode([prompts[r]], [widths[r]], [excluded[r]])
        assert beams.codes.tolist() == alone.codes.tolist()
        assert beams.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert len(beams.codes) == min(
            widths[r], len(codes) - (0 if excluded[r] is None else len(excluded[r]))
        )
        if excluded[r] is not None:
            assert not np.isin(beams.first_row, excluded[r]).any()


def test_another_architecture_is_refused_with_a_pointer(codes: np.ndarray) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=NUM_TEXT + 3 * SIZE))
    with pytest.raises(EngineError, match="not GPT2LMHeadModel; serve it with engine=vllm_logits"):
        TorchDecoder(model, Trie.build(codes, (SIZE,) * NUM_LEVELS), LEVELS)


@pytest.fixture
def engine(tmp_path: Path, codes: np.ndarray) -> TorchEngine:
    make_model("qwen3-tied").save_pretrained(tmp_path / "model")
    items = pl.DataFrame({"item_id": [str(n) for n in range(len(codes))]}).with_columns(
        title=pl.lit("t"), description=pl.lit(""), metadata=pl.lit("{}"), popularity=pl.lit(1)
    )
    write_bundle(
        tmp_path / "bundle",
        name="tiny",
        model_dir=tmp_path / "model",
        codes=codes,
        items=items,
        levels=LEVELS,
        prompt=PromptTemplate(style="sequence", history_limit=4),
        build_trie=Trie.build,
    )
    return TorchEngine(load_bundle(tmp_path / "bundle"))


def test_the_engine_serves_the_protocol(engine: TorchEngine, codes: np.ndarray) -> None:
    async def scenario() -> None:
        assert isinstance(engine, Engine)
        with pytest.raises(EngineDead):
            await engine.decode(DecodeRequest([1], 2, "early"))
        await engine.start()
        requests = [DecodeRequest([1, 2, n], n + 1, f"r{n}") for n in range(6)]
        doomed = asyncio.create_task(engine.decode(DecodeRequest([7], 3, "doomed")))
        await asyncio.sleep(0)
        doomed.cancel()
        beams = await asyncio.gather(*(engine.decode(request) for request in requests))
        assert [len(b.codes) for b in beams] == [1, 2, 3, 4, 5, 6]
        valid = {tuple(sid) for sid in codes.tolist()}
        assert all(tuple(sid) in valid for b in beams for sid in b.codes.tolist())
        await engine.close()
        await engine.close()
        assert not engine.is_alive
        with pytest.raises(EngineDead):
            await engine.decode(DecodeRequest([1], 2, "late"))

    asyncio.run(scenario())


def test_the_catalogue_is_exchanged_between_two_batches(
    engine: TorchEngine, codes: np.ndarray, tmp_path: Path
) -> None:
    fewer = Trie.build(codes[::2], (SIZE,) * NUM_LEVELS)
    write_catalogue(tmp_path / "fewer", fewer, pl.DataFrame({"n": range(fewer.num_items)}))
    before = engine._bundle.manifest.trie_version

    async def scenario() -> None:
        with pytest.raises(EngineDead):
            await engine.load_catalogue(tmp_path / "fewer")
        await engine.start()
        await engine.load_catalogue(tmp_path / "fewer")
        await engine.hide_rows(np.array([0, 2]), fewer.version)
        versions = [None, before, fewer.version, before, None, "0" * 16]
        requests = [DecodeRequest([1], 500, f"v{n}", trie_version=v) for n, v in enumerate(versions)]
        *answers, stale = await asyncio.gather(*map(engine.decode, requests), return_exceptions=True)
        assert isinstance(stale, StaleCatalogue)
        for version, beams in zip(versions, answers, strict=False):
            assert beams.trie_version == (version or fewer.version)
            expected = (
                codes.tolist() if version == before else codes[::2][[1, *range(3, len(codes[::2]))]].tolist()
            )
            assert sorted(beams.codes.tolist()) == expected
        with pytest.raises(CatalogueError):
            await engine.load_catalogue(tmp_path)
        assert (await engine.decode(DecodeRequest([1], 3, "still"))).trie_version == fewer.version
        await engine.close()

    asyncio.run(scenario())
