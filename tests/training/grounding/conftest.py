from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from training.base_model.config import MadeConfig
from training.base_model.made import make_tokenizer, make_untrained

COLOURS, THINGS = ["red", "blue", "green"], ["pot", "bowl", "jug", "kettle"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture
def items() -> pl.DataFrame:
    titles = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    about = [f"A {title} for tea." if n % 4 else "" for n, title in enumerate(titles)]
    return pl.DataFrame({"title": titles, "description": about})


@pytest.fixture
def codes() -> np.ndarray:
    """Colour and thing: a SID that means what the title says. Shape: (12, 2)."""
    return np.asarray([[colour, thing] for colour in range(3) for thing in range(4)], dtype=np.int32)


LEVELS = [("a", 3), ("b", 5)]  # code 4 of level b is carried by no item


@pytest.fixture
def levels() -> list[tuple[str, int]]:
    return LEVELS


MakeModel = Callable[..., tuple[Any, Any]]


@pytest.fixture
def make_model(items: pl.DataFrame) -> MakeModel:
    """A small untrained model and its tokenizer."""

    def make(
        *, is_tied: bool = True, num_padding: int = 0, is_chat: bool = False, architecture: Any = "qwen3"
    ) -> tuple[Any, Any]:
        tokenizer = make_tokenizer([*items["title"], *items["description"]], 300)
        if is_chat:
            tokenizer.add_tokens(["<|turn|>", "<|stop|>"], special_tokens=True)
            tokenizer.chat_template = CHAT_TEMPLATE
        config = MadeConfig(
            num_layers=2, hidden_size=32, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48,
            max_positions=128, context_tokens=64, tie_embeddings=is_tied, architecture=architecture,
        )  # fmt: skip
        model = make_untrained(config, tokenizer, seed=0)
        if num_padding:
            model.resize_token_embeddings(len(tokenizer) + num_padding, mean_resizing=False)
            with torch.no_grad():
                model.get_input_embeddings().weight[len(tokenizer) :] = 1000.0
                model.get_output_embeddings().weight[len(tokenizer) :] = 1000.0
        return model.eval(), tokenizer

    return make
