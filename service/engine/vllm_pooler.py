"""The pooler: runs the constrained beam search in vLLM's worker, right after the prompt pass.

vLLM batches, caches and reads the prompts; when a step has finished some of them, the pooler
decodes all those together and replies with beams instead of an embedding. An exception here would
end vLLM's engine for every user, so each request is answered by beams or by a sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.tasks import PoolingTask
from vllm.v1.outputs import PoolerOutput
from vllm.v1.pool.metadata import PoolingCursor, PoolingMetadata

from service.decoding.beam_search import Beams, BeamState, beam_search
from service.decoding.prefill import prefill
from service.decoding.prefix_decoder import PromptCache, SharedPrefixScorer
from service.engine.vllm_cache import PagedReader, PromptReader, StashReader
from service.engine.vllm_messages import (
    FAILED,
    STALE_CATALOGUE,
    UNKNOWN_LAYOUT,
    RequestExtras,
    UnknownCacheLayout,
    pack_beams,
    pack_refusal,
)
from service.engine.vllm_ops import VllmLayerOps
from service.engine.vllm_options import WorkerSettings
from service.errors import EngineError, StaleCatalogue

# What the self-test lets pass: rounding of half precision grows with the layers.
KV_TOLERANCE = 0.05  # of the largest number of a layer
LOGPROB_TOLERANCE = {True: 2e-3, False: 0.25}  # float32 or not; natural log

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """One finished prompt: its row in the batch, its tokens, and what was asked for."""

    row: int
    first_token: int
    last_token: int
    num_prompt: int
    extras: RequestExtras


class BeamSearchPooler(Pooler):
    """Answers pooling requests of task "embed" with beams.

    Args:
        model: the vLLM model this pooler belongs to.
        vllm_config: carries `WorkerSettings` in `additional_config`.

    Raises:
        EngineError: the bundle is unknown here, or tensor parallelism is on.
    """

    def __init__(self, model: nn.Module, vllm_config: VllmConfig) -> None:
        super().__init__()
        parallel = vllm_config.parallel_config
        if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
            raise EngineError("vllm_pooling runs on one device; for more use engine=vllm_logits")
        self._settings = WorkerSettings.from_config(vllm_config.additional_config)
        self._device = vllm_config.device_config.device or "cpu"
        self._spaces, levels = self._settings.open_catalogue(self._device)
        self._levels = [(level.first_token_id, level.codebook_size) for level in levels]
        self._max_model_len = vllm_config.model_config.max_model_len
        self._max_num_seqs = vllm_config.scheduler_config.max_num_seqs
        attentions = [layer.self_attn.attn for layer in model.model.layers]  # type: ignore[union-attr]
        reader = StashReader if self._settings.cache_reader == "stash" else PagedReader
        self._reader: PromptReader = reader(attentions)
        # Not a submodule: the model owns the pooler, and modules must form a tree.
        object.__setattr__(self, "_causal_lm", model)
        self._ops: VllmLayerOps | None = None

    def get_supported_tasks(self) -> Set[PoolingTask]:
        return {"embed"}

    def observe(self, attention_metadata: Any) -> None:
        """Called by the model before each prompt pass."""
        self._reader.observe(attention_metadata)

    def load_catalogue(self, directory: Path) -> None:
        """Called between two steps: decode with another catalogue from now on."""
        self._spaces.install(self._settings.open(directory, self._device))

    def hide_rows(self, rows: np.ndarray, trie_version: str) -> None:
        """Called between two steps: these rows of a version can no longer be reached."""
        self._spaces.of(trie_version).hide(rows)

    @torch.inference_mode()
    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> PoolerOutput:
        """Replies for the prompts that this step finished, None for the others."""
        if self._ops is None:  # only now are the weights loaded
            self._ops = VllmLayerOps(self._causal_lm)  # type: ignore[arg-type]
        cursor = pooling_metadata.get_pooling_cursor()
        replies: list[torch.Tensor | None] = [None] * len(pooling_metadata.pooling_params)
        if not self._reader.has_step:
            # vLLM profiles itself. On a CPU nothing is measured: the cache has a fixed size.
            if hidden_states.device.type != "cpu":
                self.rehearse(hidden_states)
            return [hidden_states.new_zeros(1) for _ in replies]
        jobs = []
        for row, params in enumerate(pooling_metadata.pooling_params):
            if cursor.get_finished_mask()[row]:
                try:
                    job = _job(row, cursor, params.extra_kwargs)
                    self._spaces.of(job.extras.trie_version)
                    jobs.append(job)
                except StaleCatalogue as error:
                    replies[row] = pack_refusal(STALE_CATALOGUE, str(error))
                except (EngineError, ValueError) as error:
                    replies[row] = pack_refusal(FAILED, str(error))
        for group in self._groups(jobs):
            for job, reply in zip(group, self._answer(group, hidden_states), strict=True):
                replies[job.row] = reply
        return replies

    def _groups(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Jobs of one catalogue and of similar length together, within the bounds on beam rows and on
        gathered bytes."""
        group: list[_Job] = []
        rows = 0
        for job in sorted(jobs, key=lambda job: (job.extras.trie_version or "", job.num_prompt)):
            is_other = bool(group) and job.extras.trie_version != group[0].extras.trie_version
            gathered = (len(group) + 1) * job.num_prompt * self._bytes_per_token
            too_many = rows + job.extras.max_beams > self._settings.max_beam_rows
            if is_other or (group and (too_many or gathered > self._settings.max_cache_bytes)):
                yield group
                group, rows = [], 0
            group.append(job)
            rows += job.extras.max_beams
        if group:
            yield group

    def _answer(self, group: list[_Job], hidden_states: torch.Tensor) -> list[torch.Tensor]:
        try:
            return [pack_beams(beams) for beams in self._decode(group, hidden_states)]
        except UnknownCacheLayout as error:
            return [pack_refusal(UNKNOWN_LAYOUT, str(error)) for _ in group]
        except Exception as error:
            if len(group) > 1:  # let only the request at fault fail
                return [reply for job in group for reply in self._answer([job], hidden_states)]
            logger.exception("decoding a request failed")
            return [pack_refusal(FAILED, f"decoding failed: {error}")]

    def _decode(self, group: Sequence[_Job], hidden_states: torch.Tensor) -> list[Beams]:
        lengths = [job.num_prompt for job in group]
        keys, values = self._reader.read(
            [job.row for job in group], [job.first_token for job in group], lengths
        )
        last = torch.as_tensor([job.last_token for job in group], device=hidden_states.device)
        cache = PromptCache(
            keys,
            values,
            torch.as_tensor(lengths, device=hidden_states.device),
            hidden_states[last],  # vLLM's forward ends with the final norm
        )
        extras = [job.extras for job in group]
        space = self._spaces.of(extras[0].trie_version)
        allowed = space.allow([e.exclude_rows for e in extras], [e.filter for e in extras])
        state = BeamState(space.trie, [e.beam_width for e in extras], allowed, [e.num_items for e in extras])
        answers = self._search(cache, state)
        for request, job in enumerate(group):
            if job.extras.self_test is not None:
                self._verify(job, cache, request, answers[request])
        return answers

    def _verify(self, job: _Job, read: PromptCache, request: int, beams: Beams) -> None:
        """For a self-test: decode the same prompt without vLLM's forward pass and its cache.

        The torch engine's prompt pass and beam search run on vLLM's modules, so the test covers what
        was read of every layer, vLLM's last hidden state and how we call the modules.
        """
        assert self._ops is not None and job.extras.self_test is not None
        own = prefill(self._ops, [list(job.extras.self_test)], read.lengths.device)
        length = len(job.extras.self_test)
        for layers, computed in ((read.keys, own.keys), (read.values, own.values)):
            for layer, expected in zip(layers, computed, strict=True):
                difference = (layer[request, :, :length] - expected[0]).abs().max()
                if not float(difference) <= KV_TOLERANCE * float(expected.abs().max()):
                    raise UnknownCacheLayout("keys and values read from vLLM's cache are not the model's")
        state = BeamState(self._spaces.of(job.extras.trie_version).trie, [job.extras.beam_width])
        (expected_beams,) = self._search(own, state)
        tolerance = LOGPROB_TOLERANCE[self._ops.dtype == torch.float32]
        is_close = len(beams.codes) == len(expected_beams.codes) and np.allclose(
            beams.logprobs, expected_beams.logprobs, rtol=0, atol=tolerance
        )
        if not is_close:
            raise UnknownCacheLayout(
                f"a decode over vLLM's cache gave {beams.logprobs.round(3).tolist()}, the torch engine "
                f"{expected_beams.logprobs.round(3).tolist()}"
            )

    def _search(self, cache: PromptCache, state: BeamState) -> list[Beams]:
        assert self._ops is not None
        return beam_search(SharedPrefixScorer(self._ops, self._levels, cache), state)

    def rehearse(self, hidden_states: torch.Tensor) -> None:
        """Run the largest decode that a group may become, so that its memory is measured.

        Args:
            hidden_states: any of the model's, for device and dtype. Shape: (n >= 1, D).
        """
        assert self._ops is not None
        ops, longest = self._ops, self._max_model_len
        bound = self._settings.max_cache_bytes // (longest * self._bytes_per_token)
        num_requests = max(1, min(bound, self._max_num_seqs, self._settings.max_beam_rows))
        shape = (num_requests, ops.num_kv_heads, longest, ops.head_dim)
        keys, values = ([hidden_states.new_zeros(shape) for _ in range(ops.num_layers)] for _ in range(2))
        length = longest - len(self._levels)
        lengths = torch.full((num_requests,), length, device=hidden_states.device)
        cache = PromptCache(keys, values, lengths, hidden_states[:1].expand(num_requests, -1))
        widths = [self._settings.max_beam_rows // num_requests] * num_requests
        self._search(cache, BeamState(self._spaces.newest.trie, widths))

    @property
    def _bytes_per_token(self) -> int:
        """Keys and values of one prompt token in all layers."""
        assert self._ops is not None
        numbers = 2 * self._ops.num_layers * self._ops.num_kv_heads * self._ops.head_dim
        return numbers * self._ops.dtype.itemsize


def _job(row: int, cursor: PoolingCursor, extras: dict[str, Any] | None) -> _Job:
    return _Job(
        row=row,
        first_token=int(cursor.first_token_indices_gpu[row]),
        last_token=int(cursor.last_token_indices_gpu[row]),
        num_prompt=int(cursor.prompt_lens_cpu[row]),
        extras=RequestExtras.unpack(extras),
    )
