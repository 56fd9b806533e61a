"""A tiny random bundle per architecture, and the exhaustive ranking every engine is held against."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As the engines do for their processes: vLLM's sampler would be compiled for 13 s.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

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


class LocalVllm:
    """A vLLM engine inside this process: starts in seconds, and batches what it is given together."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        # vLLM 0.32.0: in one process only with this executor and VLLM_ENABLE_V1_MULTIPROCESSING=0.
        engine_args = EngineArgs(**arguments, distributed_executor_backend="uni")
        self._engine = LLMEngine.from_engine_args(engine_args)
        self._num_requests = 0

    def run(self, prompts: Sequence[list[int]], params: Sequence[Any]) -> list[Any]:
        """Outputs of requests that are all waiting before the first step."""
        from vllm.inputs.engine import tokens_input

        names = []
        for prompt, param in zip(prompts, params, strict=True):
            names.append(str(self._num_requests))
            self._num_requests += 1
            self._engine.add_request(names[-1], tokens_input(prompt), param)
        outputs: dict[str, Any] = {}
        while self._engine.has_unfinished_requests():
            outputs |= {output.request_id: output for output in self._engine.step()}
        return [outputs[name] for name in names]

    @property
    def model(self) -> Any:
        """The vLLM model."""
        return self._engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model

    def close(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


StartLocal = Callable[[dict[str, Any]], contextlib.AbstractContextManager[LocalVllm]]


@pytest.fixture(scope="session")
def start_local() -> StartLocal:
    """Context manager around a `LocalVllm`; this process is left as it was found."""

    @contextlib.contextmanager
    def start(arguments: dict[str, Any]) -> Iterator[LocalVllm]:
        replaced = [(torch, "set_num_threads"), (torch.accelerator, "synchronize")]
        replaced.append((torch.accelerator, "empty_cache"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            for module, name in replaced:  # vLLM's CPU worker puts its own functions there
                patch.setattr(module, name, getattr(module, name))
            engine = LocalVllm(arguments)
            try:
                yield engine
            finally:
                engine.close()

    return start


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Engines prepare the process environment for vLLM; give it back after each test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
