"""A bundle with random weights, and an encoder of random directions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from service.bundle import Level, PromptTemplate, write_bundle
from service.decoding.trie import Trie
from service.semantic_ids.codebooks import Codebooks
from service.semantic_ids.item_text import ItemTextConfig
from service.semantic_ids.tfidf_encoder import TfidfEncoder

NUM_ITEMS, SIZES, VOCAB = 20_000, (64, 64, 64), 400
WORDS = [f"word{n}" for n in range(2000)]
WIDTH = 32


def random_bundle(directory: Path) -> Path:
    """A bundle with random weights: the work of a decode does not depend on them."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=384, num_hidden_layers=4, head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(directory / "model")
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, SIZES[0], size=(NUM_ITEMS, len(SIZES))), axis=0)
    items = pl.DataFrame(
        {
            "item_id": [f"item-{n}" for n in range(len(codes))],
            "title": [f"Item {n}" for n in range(len(codes))],
            "description": [""] * len(codes),
            "metadata": [json.dumps({"price": n % 500}) for n in range(len(codes))],
            "popularity": rng.integers(0, 1000, len(codes)),
        },
        schema_overrides={"popularity": pl.Int64},
    )
    write_bundle(
        directory / "bundle", name="load", model_dir=directory / "model", codes=codes, items=items,
        levels=levels(SIZES, first_token_id=100),
        prompt=PromptTemplate(style="sequence", history_limit=20, prefix_token_ids=(1,)),
        build_trie=Trie.build, tokenizer_files=write_tokenizer(directory / "tokenizer", SIZES, rng),
    )  # fmt: skip
    return directory / "bundle"


def levels(sizes: tuple[int, ...], *, first_token_id: int) -> list[Level]:
    """Levels of SIDs whose tokens follow one another. `sizes`: codes per level."""
    firsts = first_token_id + np.cumsum([0, *sizes[:-1]])
    return [
        Level(letter="abcdefgh"[n], codebook_size=size, first_token_id=int(first))
        for n, (size, first) in enumerate(zip(sizes, firsts, strict=True))
    ]


def write_tokenizer(directory: Path, sizes: tuple[int, ...], rng: np.random.Generator) -> dict[str, Path]:
    """An encoder that knows `WORDS`, with codebooks; name below `tokenizer/` -> file."""
    TfidfEncoder(
        vocabulary={word: column for column, word in enumerate(WORDS)},
        max_words=1,
        idf=np.ones(len(WORDS), dtype=np.float32),
        components=rng.normal(size=(len(WORDS), WIDTH)).astype(np.float32),
        taste_map=np.zeros((WIDTH, 0), dtype=np.float32),
    ).save(directory / "encoder")
    (directory / "encoder" / "text.json").write_text(ItemTextConfig().model_dump_json())
    books = [rng.normal(scale=0.2 * 0.7**n, size=(size, WIDTH)) for n, size in enumerate(sizes)]
    Codebooks(tuple(book.astype(np.float32) for book in books)).save(directory / "codebooks.safetensors")
    (directory / "levels.json").write_text(json.dumps([{"codebook_size": size} for size in sizes]))
    return {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
