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

from dataclasses import dataclass
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


@dataclass
class _Growing:
    """A request that generates more than one token: where it started and what was walked so far."""

    trie: TokenTrie
    node: int
    num_walked: int = 0
    output: list[int] | None = None  # V1: the live list of its output tokens


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
        num_slots = max(1, vllm_config.scheduler_config.max_num_seqs)
        self._nodes = np.full(num_slots, FREE, dtype=np.int64)
        self._trie_of = np.full(num_slots, None, dtype=object)  # TokenTrie, None: not held any more
        self._growing: dict[int, _Growing] = {}

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
        if ctx is None:
            slots = np.arange(len(logits))
            if self._growing:
                self._walk_v1()
        else:
            slots = ctx.idx_mapping_np
            if self._growing:
                self._walk_v2(slots, ctx.seq_lens_upper_bound_np)
        if not len(slots):
            return logits
        self._reserve(int(slots.max()))
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
        if params.max_tokens != 1 and trie is not None:  # else its only token is sampled at this node
            self._growing[slot] = _Growing(trie, node, output=output)

    def _forget(self, slot: int) -> None:
        self._growing.pop(slot, None)
        if slot < len(self._nodes):
            self._nodes[slot], self._trie_of[slot] = FREE, None

    def _move(self, source: int, target: int, *, is_swap: bool) -> None:
        self._reserve(max(source, target))
        moved, displaced = self._growing.pop(source, None), self._growing.pop(target, None)
        nodes = self._nodes
        nodes[source], nodes[target] = (nodes[target] if is_swap else FREE), nodes[source]
        tries = self._trie_of
        tries[source], tries[target] = (tries[target] if is_swap else None), tries[source]
        if moved is not None:
            self._growing[target] = moved
        if is_swap and displaced is not None:
            self._growing[source] = displaced

    def _reserve(self, slot: int) -> None:
        if slot >= len(self._nodes):
            num_more = max(slot + 1, 2 * len(self._nodes)) - len(self._nodes)
            self._nodes = np.concatenate([self._nodes, np.full(num_more, FREE, dtype=np.int64)])
            self._trie_of = np.concatenate([self._trie_of, np.full(num_more, None, dtype=object)])

    def _walk_v1(self) -> None:
        """Follow the tokens that the growing requests have got since the last step."""
        for slot, request in self._growing.items():
            assert request.output is not None
            self._walk(slot, request, request.output[request.num_walked :])

    def _walk_v2(self, slots: np.ndarray, seq_lens: np.ndarray) -> None:
        for slot, seq_len in zip(slots.tolist(), seq_lens.tolist(), strict=True):
            request = self._growing.get(slot)
            if request is not None:
                first = int(self._states.prompt_len.np[slot]) + request.num_walked
                # Only requests of several tokens come here: one small read back from the device.
                self._walk(slot, request, self._states.all_token_ids.gpu[slot, first:seq_len].tolist())

    def _walk(self, slot: int, request: _Growing, tokens: list[int]) -> None:
        for token in tokens:
            request.node = request.trie.child(request.node, token)
        request.num_walked += len(tokens)
        self._nodes[slot] = request.node
