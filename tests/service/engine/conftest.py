"""A tiny random bundle per architecture, and the exhaustive ranking every engine is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from service.bundle import Bundle, Level, PromptTemplate, load_bundle, write_bundle
from service.decoding.trie import Trie

NUM_TEXT = 60
# Ragged codebooks, and token ranges that are neither adjacent nor in the order of the levels.
LEVELS = (
    Level(letter="a", codebook_size=9, first_token_id=80),
    Level(letter="b", codebook_size=7, first_token_id=60),
    Level(letter="c", codebook_size=12, first_token_id=100),
)
VOCAB_SIZE = 120
NUM_ITEMS = 150
MODELS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
    "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 32, "tie_word_embeddings": False}),
}


@dataclass(frozen=True)
class TinyBundle:
    """A bundle with a random model, and what brute force says about it.

    Attributes:
        bundle: opened, verified.
        model: the same weights as a Hugging Face model, float32.
        sids: distinct SIDs, ascending. Shape: (M, L), int64.
    """

    bundle: Bundle
    model: torch.nn.Module
    sids: np.ndarray

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt the template can make."""
        return self.bundle.manifest.prompt.max_tokens(len(LEVELS))

    def prompt(self, num_tokens: int, seed: int = 0) -> list[int]:
        """A random prompt of text and SID tokens."""
        return np.random.default_rng((seed, num_tokens)).integers(0, VOCAB_SIZE, num_tokens).tolist()

    def exhaustive(self, prompt: list[int]) -> np.ndarray:
        """log p(SID | prompt) of every SID by one full forward pass each. Shape: (M,)."""
        tokens = self.bundle.manifest.tokens_of(self.sids)
        rows = torch.tensor([prompt + sid for sid in tokens.tolist()])
        with torch.inference_mode():
            logprobs = self.model(rows).logits.log_softmax(-1)
        steps = range(len(prompt) - 1, rows.shape[1] - 1)
        return sum(logprobs[range(len(rows)), at, rows[:, at + 1]] for at in steps).numpy()


def _make_model(kind: str) -> torch.nn.Module:
    model_class, config_class, extra = MODELS[kind]
    torch.manual_seed(3)
    config = config_class(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.25,
        **extra,
    )
    return model_class(config).eval()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyBundle]:
    """Maker of tiny bundles, one per kind in "qwen3", "llama"; each is made once per session."""
    made: dict[str, TinyBundle] = {}

    def make(kind: str) -> TinyBundle:
        if kind not in made:
            made[kind] = _make_bundle(kind, tmp_path_factory.mktemp(f"bundle-{kind}"))
        return made[kind]

    return make


def _make_bundle(kind: str, directory: Path) -> TinyBundle:
    model = _make_model(kind)
    model.save_pretrained(directory / "model")
    sizes = [level.codebook_size for level in LEVELS]
    codes = np.random.default_rng(0).integers(0, sizes, (NUM_ITEMS, len(LEVELS)))
    codes[-10:] = codes[:10]  # ten SIDs with two items each
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(NUM_ITEMS)]}).with_columns(
        title=pl.lit("t"), description=pl.lit(""), metadata=pl.lit("{}"), popularity=pl.lit(1)
    )
    write_bundle(
        directory / "bundle",
        name=f"tiny-{kind}",
        model_dir=directory / "model",
        codes=codes,
        items=items,
        levels=LEVELS,
        prompt=PromptTemplate(style="sequence", history_limit=40, prefix_token_ids=(1, 2)),
        build_trie=Trie.build,
    )
    return TinyBundle(load_bundle(directory / "bundle"), model, np.unique(codes, axis=0))
