"""The engines without vLLM: our torch decoder, Hugging Face `generate`, and the floor under all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from service.bundle import Bundle, load_bundle
from service.decoding.beam_search import BeamState, beam_search
from service.decoding.prefill import prefill
from service.decoding.prefix_decoder import LayerOps, SharedPrefixScorer
from service.decoding.search_space import SearchSpace
from service.engine.hf_ops import HFLayerOps
from service.engine.torch_engine import TorchDecoder


def load_model(bundle: Bundle, dtype: str) -> Any:
    """The bundle's model as Hugging Face module, in eval mode."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(str(bundle.model_dir), dtype=getattr(torch, dtype)).eval()


class TorchBench:
    """Our decoder on Hugging Face modules, called directly."""

    def __init__(self, bundle_dir: Path, dtype: str, max_width: int) -> None:
        bundle = load_bundle(bundle_dir)
        self._space = SearchSpace.open(bundle_dir)
        self._decoder = TorchDecoder(load_model(bundle, dtype), self._space, bundle.manifest.levels)

    def decode(self, prompts: list[list[int]], width: int, only: dict[str, Any] | None) -> list[np.ndarray]:
        """SIDs of every prompt, best first. Shapes: (B, L)."""
        filters = None if only is None else [self._space.compile(only)] * len(prompts)
        found = self._decoder.decode(prompts, [width] * len(prompts), filters=filters)
        return [beams.codes for beams in found]


class TrieBench:
    """What trie and filter cost inside a request: a real decode, of which only the search's time counts.

    That is the filter's compilation and allowed rows, children, counts, sums, top-k, bookkeeping and
    results, each between two forward passes as in an engine, with whatever those left in the caches.

    Attributes:
        milliseconds: of the last decode; `EngineProcess` reports it instead of the whole.
    """

    def __init__(self, bundle_dir: Path, dtype: str, max_width: int) -> None:
        bundle = load_bundle(bundle_dir)
        self._space = SearchSpace.open(bundle_dir)
        self._ops = HFLayerOps(load_model(bundle, dtype))
        self._levels = [(level.first_token_id, level.codebook_size) for level in bundle.manifest.levels]
        self.milliseconds = 0.0

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], width: int, only: dict[str, Any] | None) -> list[np.ndarray]:
        """As `TorchBench.decode`."""
        cache = prefill(self._ops, prompts, torch.device("cpu"))
        scorer = _Clocked(SharedPrefixScorer(self._ops, self._levels, cache))
        start = time.perf_counter()
        chosen = None if only is None else self._space.compile(only)
        allowed = self._space.allow([None] * len(prompts), [chosen] * len(prompts))
        state = BeamState(self._space.trie, [width] * len(prompts), allowed)
        found = beam_search(scorer, state)
        self.milliseconds = 1000 * (time.perf_counter() - start - scorer.seconds)
        return [beams.codes for beams in found]


class _Clocked:
    """A scorer that counts its own seconds."""

    def __init__(self, scorer: SharedPrefixScorer) -> None:
        self._scorer = scorer
        self.seconds = 0.0

    def first(self) -> torch.Tensor:
        return self._time(self._scorer.first)

    def advance(self, parents: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        return self._time(self._scorer.advance, parents, codes, level)

    def _time(self, function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        start = time.perf_counter()
        scores = function(*arguments)
        self.seconds += time.perf_counter() - start
        return scores


class HFGenerateBench:
    """`generate(num_beams=W, prefix_allowed_tokens_fn=...)`; all prompts of a call in one batch."""

    def __init__(self, bundle_dir: Path, dtype: str, max_width: int) -> None:
        bundle = load_bundle(bundle_dir)
        self._model = load_model(bundle, dtype)
        self._first_ids = np.asarray([level.first_token_id for level in bundle.manifest.levels])
        self._allowed: dict[tuple[int, ...], list[int]] = {}
        tokens = bundle.manifest.tokens_of(bundle.semantic_ids)
        for level in range(tokens.shape[1]):
            for *prefix, token in np.unique(tokens[:, : level + 1], axis=0).tolist():
                self._allowed.setdefault(tuple(prefix), []).append(token)

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], width: int, only: None) -> list[np.ndarray]:
        num_prompt, num_levels = len(prompts[0]), len(self._first_ids)
        # Hugging Face keeps 2 W candidates of which some have no allowed continuation: any list does.
        out = self._model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(len(prompts), num_prompt, dtype=torch.long),
            num_beams=width,
            num_return_sequences=width,
            min_new_tokens=num_levels,
            max_new_tokens=num_levels,
            do_sample=False,
            length_penalty=0.0,
            prefix_allowed_tokens_fn=lambda _, ids: self._allowed.get(tuple(ids[num_prompt:].tolist()), [1]),
            pad_token_id=0,
        )
        codes = out[:, num_prompt:].numpy() - self._first_ids
        return list(codes.reshape(len(prompts), width, num_levels))


class Floor:
    """The forward passes that no exact beam search can leave out: no trie, no choice, no bookkeeping.

    One pass over the prompts and the logits after them; then L - 1 passes of W rows per request
    through the same modules, attending to one shared copy of the prompt, with full logits, which
    the normaliser needs. What a beam adds (its own few tokens, sums, top-k, reordering) is absent.
    """

    def __init__(self, bundle_dir: Path, dtype: str, max_width: int) -> None:
        bundle = load_bundle(bundle_dir)
        self._ops = HFLayerOps(load_model(bundle, dtype))
        self._levels = bundle.manifest.levels
        self._head = self._ops.model.lm_head.weight

    def decode(self, prompts: list[list[int]], width: int, only: None) -> list[np.ndarray]:
        run_floor(self._ops, self._head, [level.first_token_id for level in self._levels], prompts, width)
        return []


@torch.inference_mode()
def run_floor(
    ops: LayerOps, head: torch.Tensor, first_ids: list[int], prompts: list[list[int]], width: int
) -> None:
    """See `Floor`.

    Args:
        ops: the modules to call.
        head: output embedding. Shape: (V, D).
        first_ids: any token of every level.
        prompts: of equal length.
        width: W.
    """
    num_requests = len(prompts)
    cache = prefill(ops, prompts, head.device)  # type: ignore[arg-type]
    F.linear(cache.last_hidden, head)
    for level, token in enumerate(first_ids[:-1]):
        hidden = ops.embed(torch.full((num_requests * width,), token))
        positions = torch.full((num_requests * width,), len(prompts[0]) + level)
        for layer in range(ops.num_layers):
            query, _, _ = ops.qkv(layer, hidden, positions)
            # (R, G, W * H/G, d): all beams of a request are rows of one matrix against its prompt.
            rows = query.view(num_requests, width, ops.num_kv_heads, -1, ops.head_dim).transpose(1, 2)
            out = F.scaled_dot_product_attention(rows.flatten(2, 3), cache.keys[layer], cache.values[layer])
            out = out.view(num_requests, ops.num_kv_heads, width, -1, ops.head_dim).transpose(1, 2)
            hidden = ops.finish_layer(layer, hidden, out.reshape(num_requests * width, -1))
        F.linear(ops.final_norm(hidden), head)
