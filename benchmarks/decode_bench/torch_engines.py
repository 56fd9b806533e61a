"""The engines without vLLM: our torch decoder, Hugging Face `generate`, and the floor under all."""

from __future__ import annotations

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
    """What the trie costs: a beam search over log-probabilities that were computed before.

    Children, filter counts, sums, top-k, bookkeeping and results; no model. The first call at a width
    records what the model says, later ones replay it.
    """

    def __init__(self, bundle_dir: Path, dtype: str, max_width: int) -> None:
        bundle = load_bundle(bundle_dir)
        self._space = SearchSpace.open(bundle_dir)
        self._ops = HFLayerOps(load_model(bundle, dtype))
        self._levels = [(level.first_token_id, level.codebook_size) for level in bundle.manifest.levels]
        self._recorded: dict[tuple[int, int, str | None], _Replay] = {}

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], width: int, only: dict[str, Any] | None) -> list[np.ndarray]:
        """As `TorchBench.decode`, for the prompts of the first call."""
        chosen = None if only is None else self._space.compile(only)
        key = (len(prompts), width, chosen)
        if key not in self._recorded:
            cache = prefill(self._ops, prompts, torch.device("cpu"))
            scorer = SharedPrefixScorer(self._ops, self._levels, cache)
            self._recorded[key] = _Replay(scorer)
        allowed = self._space.allow([None] * len(prompts), [chosen] * len(prompts))
        state = BeamState(self._space.trie, [width] * len(prompts), allowed)
        return [beams.codes for beams in beam_search(self._recorded[key], state)]


class _Replay:
    """A scorer that asks another one once and then repeats its answers."""

    def __init__(self, scorer: SharedPrefixScorer) -> None:
        self._scorer = scorer
        self._answers: dict[int, torch.Tensor] = {}

    def first(self) -> torch.Tensor:
        if -1 not in self._answers:
            self._answers[-1] = self._scorer.first()
        return self._answers[-1]

    def advance(self, parents: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        if level not in self._answers:
            self._answers[level] = self._scorer.advance(parents, codes, level)
        return self._answers[level]


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
