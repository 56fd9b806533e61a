"""The trie logits processor, one class for both of vLLM's interfaces.

vLLM 0.32 has two: the V1 model runner (CPU) announces requests in `update_state`, the V2 runner
(GPU with Triton) in `add_request`. A loader of one refuses a class of the other, so this class is
both. Whichever way requests arrive, a row of the logits ends as the true log-probabilities of the
codes its trie node allows, and -inf elsewhere: the softmax is taken over the FULL vocabulary first.
With `logprobs_mode="processed_logits"` vLLM then returns those log-probabilities unchanged.

A request takes part if its `SamplingParams.extra_args` hold `{"gtirec_node": n}`, the node that its
prompt ends at (0: the root), and optionally `"gtirec_trie"`, the version of the trie that is meant
(else the newest); other requests of the batch are left alone. It also works in a stock
server: `vllm serve ... --logits-processors
service.engine.vllm_logits_processor:TrieLogitsProcessor --additional-config '{"gtirec": {...}}'`.

Shapes: n rows of a batch, V vocabulary, M nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

from service.decoding.search_space import SearchSpace
from service.engine.vllm_options import WorkerSettings
from service.engine.vllm_token_trie import NODE_KEY, TRIE_KEY, TokenTrie

FREE = -1  # a slot whose request is not constrained
FIXED = -1  # a slot whose request gets one token only, so it never leaves the node it came with


class TrieLogitsProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Constrains requests to the SIDs of a bundle.

    Args:
        vllm_config: carries `WorkerSettings` in `additional_config`.
        runner: (device, is_pin_memory) from the V1 runner, (request states,) from V2.

    Raises:
        EngineError: the bundle is unknown to this process.
        ValueError: speculative decoding is on; its draft tokens would need rows of their own.
    """

    def __init__(self, vllm_config: VllmConfig, *runner: Any) -> None:
        if vllm_config.speculative_config is not None:
            raise ValueError("the trie logits processor does not work with speculative decoding")
        self._states: Any = runner[0] if len(runner) == 1 else None
        self._spaces, levels = WorkerSettings.from_config(vllm_config.additional_config).open_catalogue()
        self._first_token_ids = [level.first_token_id for level in levels]
        newest = self._spaces.newest.trie
        self._tries = {newest.version: TokenTrie(newest, self._first_token_ids)}  # oldest first
        # One entry per slot: V1 slots are rows of the batch, V2 slots are fixed per request.
        self._nodes = np.empty(0, dtype=np.int64)
        self._trie_of = np.empty(0, dtype=object)  # TokenTrie; None: not held any more
        self._num_walked = np.empty(0, dtype=np.int64)  # tokens of output followed so far, or FIXED
        self._outputs: dict[int, list[int]] = {}  # V1: live lists of requests of several tokens
        self._reserve(max(1, vllm_config.scheduler_config.max_num_seqs) - 1)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request whose node or trie makes no sense, before it reaches the batch."""
        extra = sampling_params.extra_args or {}
        node, version = extra.get(NODE_KEY), extra.get(TRIE_KEY)
        if version is not None and not isinstance(version, str):
            raise ValueError(f"extra_args[{TRIE_KEY!r}] must be the version of a trie, got {version!r}")
        if node is not None and (not isinstance(node, int) or isinstance(node, bool) or node < 0):
            raise ValueError(f"extra_args[{NODE_KEY!r}] must be a trie node >= 0, got {node!r}")

    def is_argmax_invariant(self) -> bool:
        """False: greedy choices change too."""
        return False

    def load_catalogue(self, directory: Path) -> None:
        """Called between two steps: requests that name no other trie are masked by this one."""
        self._spaces.install(SearchSpace.open(directory))
        known = {**self._tries}
        for version, trie in self._spaces.tries().items():
            known.setdefault(version, TokenTrie(trie, self._first_token_ids))
        self._tries = {version: known[version] for version in self._spaces.tries()}

    def hide_rows(self, rows: np.ndarray, trie_version: str) -> None:
        """Nothing to do: hidden rows are left out by the beam search, which runs in the service."""

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """V1: follow the batch. vLLM asks for the order removed, added, moved."""
        if batch_update is None:
            return
        for slot in batch_update.removed:
            self._forget(slot)
        for slot, params, _, output in batch_update.added:
            self._admit(slot, params, output)
        for first, second, direction in batch_update.moved:
            self._move(first, second, is_swap=direction == MoveDirectionality.SWAP)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: a request enters a slot. Returns whether it is constrained."""
        self._admit(req_idx, sampling_params, None)
        return bool(self._nodes[req_idx] != FREE)

    def apply_staged_writes(self) -> None:
        """V2: nothing is staged, the nodes are kept on the host."""

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Mask the rows of constrained requests. Shape: (n, V), changed in place and returned.

        Both runners hold one row per request in batch order.
        """
        slots = np.arange(len(logits)) if ctx is None else ctx.idx_mapping_np
        if not len(slots):
            return logits
        self._reserve(int(slots.max()))
        growing = np.flatnonzero(self._num_walked[slots] != FIXED)
        if len(growing):
            tokens = (
                self._new_tokens_v1(slots[growing])
                if ctx is None
                else self._new_tokens_v2(slots[growing], ctx.seq_lens_upper_bound_np[growing])
            )
            self._walk(slots[growing], tokens)
        nodes = self._nodes[slots]
        rows = np.flatnonzero(nodes != FREE)
        if not len(rows):
            return logits
        # Nearly always one trie: several are in use for moments after an exchange.
        tries = self._trie_of[slots[rows]]
        for trie in set(tries):
            these = rows[tries == trie]
            if trie is None:
                logits[torch.from_numpy(these).to(logits.device)] = float("-inf")
            else:
                trie.mask(logits, these, nodes[these])
        return logits

    def _admit(self, slot: int, params: SamplingParams, output: list[int] | None) -> None:
        self._reserve(slot)
        self._forget(slot)
        extra = params.extra_args or {}
        node, version = extra.get(NODE_KEY), extra.get(TRIE_KEY)
        if node is None:
            return
        trie = self._tries.get(version or next(reversed(self._tries)))
        self._nodes[slot], self._trie_of[slot] = node, trie
        if params.max_tokens != 1 and trie is not None:
            self._num_walked[slot] = 0
            if output is not None:
                self._outputs[slot] = output

    def _forget(self, slot: int) -> None:
        self._outputs.pop(slot, None)
        if slot < len(self._nodes):
            self._nodes[slot], self._trie_of[slot], self._num_walked[slot] = FREE, None, FIXED

    def _move(self, source: int, target: int, *, is_swap: bool) -> None:
        self._reserve(max(source, target))
        if not is_swap:
            self._forget(target)
        for array in (self._nodes, self._trie_of, self._num_walked):
            array[source], array[target] = array[target], array[source]
        moved, displaced = self._outputs.pop(source, None), self._outputs.pop(target, None)
        if moved is not None:
            self._outputs[target] = moved
        if displaced is not None:
            self._outputs[source] = displaced

    def _reserve(self, slot: int) -> None:
        if slot >= len(self._nodes):
            num_more = max(slot + 1, 2 * len(self._nodes)) - len(self._nodes)
            self._nodes = np.concatenate([self._nodes, np.full(num_more, FREE)])
            self._trie_of = np.concatenate([self._trie_of, np.full(num_more, None, dtype=object)])
            self._num_walked = np.concatenate([self._num_walked, np.full(num_more, FIXED)])

    def _new_tokens_v1(self, slots: np.ndarray) -> np.ndarray:
        """Tokens that requests have got since the last step, -1 as padding. Shape: (m,) -> (m, n)."""
        news = [
            self._outputs[slot][walked:] for slot, walked in zip(slots, self._num_walked[slots], strict=True)
        ]
        tokens = np.full((len(news), max(map(len, news))), -1, dtype=np.int64)
        for row, new in zip(tokens, news, strict=True):
            row[: len(new)] = new
        return tokens

    def _new_tokens_v2(self, slots: np.ndarray, seq_lens: np.ndarray) -> np.ndarray:
        """The same from the device: one gather and one read back."""
        first = self._states.prompt_len.np[slots] + self._num_walked[slots]
        positions = first[:, None] + np.arange(max(0, int((seq_lens - first).max())))
        is_new = positions < seq_lens[:, None]
        history = self._states.all_token_ids.gpu
        rows, columns = (
            torch.from_numpy(at.astype(np.int64)).to(history.device)
            for at in (slots[:, None], np.minimum(positions, history.shape[1] - 1))
        )
        return np.where(is_new, history[rows, columns].cpu().numpy(), -1)

    def _walk(self, slots: np.ndarray, tokens: np.ndarray) -> None:
        """Follow new tokens through the tries; nearly always one token a request. Shape: (m,), (m, n)."""
        tries = self._trie_of[slots]
        for column in tokens.T:
            for trie in set(tries):
                these = (tries == trie) & (column >= 0)
                self._nodes[slots[these]] = trie.children(self._nodes[slots[these]], column[these])
        self._num_walked[slots] += (tokens >= 0).sum(axis=1)
