"""A small dataset with SIDs, two items of which share one, and a tiny model; for evaluation and export."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from service.bundle.manifest import Level
from service.bundle.prompt import PromptTemplate
from training.items.dataset import ROW_SCHEMA, Dataset

NUM_ITEMS = 30
FIRST_TOKEN = 5
SIZES = (3, 4, 5)


@dataclass(frozen=True)
class World:
    """What evaluation and export read."""

    dataset: Dataset
    codes: np.ndarray
    levels: tuple[Level, ...]
    prompt: PromptTemplate


def make_world(seed: int = 0, num_users: int = 40) -> World:
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(60)[:NUM_ITEMS]
    numbers[1] = numbers[0]
    codes = np.stack([numbers // 20, numbers // 5 % 4, numbers % 5], axis=1).astype(np.int32)
    items = pl.DataFrame(
        {
            "item_id": [f"i{n:02d}" for n in generator.permutation(NUM_ITEMS)],
            "title": [f"Item {n}" for n in range(NUM_ITEMS)],
            "description": ["d"] * NUM_ITEMS,
            "metadata": ["{}"] * NUM_ITEMS,
        }
    )
    parts: dict[str, list[tuple[str, list[int], int]]] = {"train": [], "valid": [], "test": []}
    for user in range(num_users):
        sequence = generator.integers(0, NUM_ITEMS, size=generator.integers(5, 9)).tolist()
        for at in range(1, len(sequence)):
            part = {len(sequence) - 1: "test", len(sequence) - 2: "valid"}.get(at, "train")
            parts[part].append((f"u{user}", sequence[max(0, at - 4) : at], sequence[at]))
    frames = {name: pl.DataFrame(rows, schema=ROW_SCHEMA, orient="row") for name, rows in parts.items()}
    first = [FIRST_TOKEN + sum(SIZES[:level]) for level in range(len(SIZES))]
    return World(
        dataset=Dataset.make(
            items, frames["train"], frames["valid"], frames["test"], history_limit=4, name="small"
        ),
        codes=codes,
        levels=tuple(
            Level(letter="abc"[level], codebook_size=size, first_token_id=first[level])
            for level, size in enumerate(SIZES)
        ),
        prompt=PromptTemplate(style="sequence", history_limit=4, prefix_token_ids=(1,)),
    )


@pytest.fixture(scope="session")
def world_maker() -> Callable[..., World]:
    """Makes worlds: (seed, num_users)."""
    return make_world


@pytest.fixture(scope="session")
def world() -> World:
    """The one most tests look at."""
    return make_world()


@pytest.fixture(scope="session")
def world_model() -> Any:
    """A small model whose scores of the world's SIDs differ widely."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=FIRST_TOKEN + sum(SIZES),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.5,
    )
    return Qwen3ForCausalLM(config).eval()
