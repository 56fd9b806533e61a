"""What every engine is given: a random catalogue, random models, and prompts nobody has seen.

Random weights are enough: speed depends on shapes. They are rounded to bfloat16 once, so that both
dtypes run the same model, and enlarged, so that beams are well apart in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NUM_TEXT_TOKENS = 4_000
VOCAB_SIZE = 5_120  # text, 4 x 256 SID tokens, and padding as real vocabularies have
LEVEL_SIZES = (256, 256, 256, 256)
NUM_PROMPT_TOKENS = 192
ONE_PERCENT = {"shelf": 7}  # a filter that one item in a hundred passes, spread over the whole trie


@dataclass(frozen=True)
class Shape:
    """Size of a random Qwen3: head width 64, half as many key/value heads as query heads."""

    hidden: int
    layers: int
    intermediate: int
    heads: int


SHAPES = {"tiny": Shape(64, 2, 128, 2), "6m": Shape(256, 6, 768, 4), "100m": Shape(768, 12, 2816, 12)}


def random_codes(num_items: int, seed: int = 3) -> np.ndarray:
    """Distinct SIDs, skewed in the first two levels as those of real catalogues. Shape: (N, 4), int64."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (2 * num_items, len(LEVEL_SIZES)))
    for level in (0, 1):
        codes[:, level] = np.minimum(rng.geometric(0.02, len(codes)) - 1, 255)
    codes = np.unique(codes, axis=0)
    if len(codes) < num_items:
        raise ValueError(f"only {len(codes)} of {num_items} random SIDs are distinct")
    return codes[rng.permutation(len(codes))[:num_items]]


def fresh_prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts of text tokens; another seed gives prompts no engine has in a cache."""
    rng = np.random.default_rng((99, seed))
    return rng.integers(10, NUM_TEXT_TOKENS, (count, NUM_PROMPT_TOKENS)).tolist()


def make_model(shape: Shape, directory: Path) -> int:
    """Save a random Qwen3 in bfloat16. Returns its number of parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // 2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(3.0 if "embed" in name else 2.0)
    model.to(torch.bfloat16).save_pretrained(directory)
    _make_tokenizer().save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def _make_tokenizer() -> Any:
    """One word per token id; vLLM's own beam search will not run without a tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {word: n for n, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>"])}
    words |= {f"w{n}": n for n in range(len(words), VOCAB_SIZE)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def make_bundle(name: str, directory: Path, num_items: int) -> tuple[Path, int]:
    """A bundle around a random model.

    Args:
        name: a key of `SHAPES`.
        directory: where to write.
        num_items: size of the catalogue.

    Returns:
        The bundle's directory and the model's number of parameters.
    """
    import polars as pl

    from service.bundle import Level, PromptTemplate, write_bundle
    from service.decoding.trie import Trie

    num_parameters = make_model(SHAPES[name], directory / f"model-{name}")
    starts = np.cumsum([NUM_TEXT_TOKENS, *LEVEL_SIZES[:-1]]).tolist()
    levels = [
        Level(letter="abcd"[n], codebook_size=size, first_token_id=first)
        for n, (size, first) in enumerate(zip(LEVEL_SIZES, starts, strict=True))
    ]
    items = pl.DataFrame({"item_id": [f"i{n:08d}" for n in range(num_items)]}).with_columns(
        title=pl.lit("t"),
        description=pl.lit(""),
        metadata=pl.Series([f'{{"shelf": {n % 100}}}' for n in range(num_items)]),
        popularity=pl.lit(1),
    )
    write_bundle(
        directory / name,
        name=f"bench-{name}",
        model_dir=directory / f"model-{name}",
        codes=random_codes(num_items),
        items=items,
        levels=levels,
        prompt=PromptTemplate(style="sequence", history_limit=50),
        build_trie=Trie.build,
    )
    return directory / name, num_parameters
