"""The `torch` engine: the decoder on Hugging Face modules, without vLLM.

`TorchDecoder` is the reference for the vLLM engines and gives training its offline numbers;
`TorchEngine` puts it behind the engine protocol with micro-batching.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from service.bundle import Bundle
from service.bundle.manifest import Level
from service.decoding.beam_search import Beams, BeamState, beam_search
from service.decoding.filters import DEFAULT_CACHE_BYTES
from service.decoding.prefill import prefill
from service.decoding.prefix_decoder import SharedPrefixScorer
from service.decoding.search_space import SearchSpace, SearchSpaces
from service.decoding.trie import Trie
from service.engine.hf_ops import HFLayerOps
from service.engine.protocol import DecodeRequest
from service.engine.recorded_decode import RecordedDecodes, Recorder, record_cuda_graph
from service.errors import EngineDead, EngineError, StaleCatalogue


class TorchDecoder:
    """Constrained beam search with a Hugging Face model.

    Args:
        model: Llama, Qwen2, Qwen3 or Mistral causal LM; used in eval mode, on its own device.
        catalogue: what may be decoded: a trie over the bundle's SIDs, moved to the model's device, or
            a search space on that device.
        levels: token ranges of the levels.

    Attributes:
        spaces: the catalogue, in the versions that may be decoded with.
    """

    def __init__(self, model: nn.Module, catalogue: Trie | SearchSpace, levels: Sequence[Level]) -> None:
        self._ops = HFLayerOps(model)
        self._device = next(model.parameters()).device
        if isinstance(catalogue, Trie):
            catalogue = SearchSpace(catalogue, device=self._device)
        self.spaces = SearchSpaces(catalogue)
        trie = catalogue.trie
        self._recorded: RecordedDecodes | None = None
        self._levels = [(level.first_token_id, level.codebook_size) for level in levels]
        if tuple(size for _, size in self._levels) != trie.codebook_sizes:
            raise EngineError(
                f"the trie has codebooks {trie.codebook_sizes}, the levels say {self._levels}; "
                "they come from different bundles"
            )
        if self._device.type == "cuda":
            self.record(record_cuda_graph)

    def record(self, record: Recorder) -> None:
        """Run searches of fixed shapes from now on, recorded by `record`; on CUDA from the start."""
        self._recorded = RecordedDecodes(self._ops, self._levels, record)

    def install(self, space: SearchSpace) -> None:
        """Exchange the catalogue; the versions before stay answerable for a while."""
        self.spaces.install(space)
        if self._recorded is not None:
            self._recorded.forget()

    @torch.inference_mode()
    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        widths: Sequence[int],
        exclude_rows: Sequence[np.ndarray | None] | None = None,
        *,
        filters: Sequence[str | None] | None = None,
        wanted: Sequence[int] | None = None,
        trie_version: str | None = None,
    ) -> list[Beams]:
        """Decode a batch of prompts of any lengths.

        Args:
            prompts: token ids, each at least one token.
            widths: beam width per prompt.
            exclude_rows: per prompt item rows not to be reached (sorted, unique) or None.
            filters: per prompt a canonical filter or None.
            wanted: per prompt the item rows to reach, by more beams than its width if need be.
            trie_version: the version of the catalogue to decode with, the newest if None.

        Returns:
            One `Beams` per prompt.

        Raises:
            StaleCatalogue: that version is not held.
        """
        if not prompts:
            return []
        if min(len(prompt) for prompt in prompts) < 1:
            raise ValueError("every prompt needs at least one token")
        space = self.spaces.of(trie_version)
        was_training = self._ops.model.training
        self._ops.model.eval()
        try:
            excluded = exclude_rows or [None] * len(prompts)
            allowed = space.allow(excluded, filters)
            cache = prefill(self._ops, prompts, self._device)
            if self._recorded is not None:
                wanted = wanted or [0] * len(prompts)
                return self._recorded.decode(cache, space, widths, wanted, allowed)
            scorer = SharedPrefixScorer(self._ops, self._levels, cache)
            return beam_search(scorer, BeamState(space.trie, widths, allowed, wanted))
        finally:
            self._ops.model.train(was_training)


@dataclass
class _Waiting:
    request: DecodeRequest
    future: asyncio.Future[Beams] = field(repr=False)


class TorchEngine:
    """The decoder behind the engine protocol; requests that wait together are decoded together.

    Args:
        bundle: what to serve.
        dtype: torch dtype name the weights are run in.
        device: torch device.
        max_beam_rows: bound on the sum of beam widths decoded in one batch.
        filter_cache_bytes: memory for prefix sums of filters, 4 bytes per item each.
    """

    name = "torch"

    def __init__(
        self,
        bundle: Bundle,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        max_beam_rows: int = 1024,
        filter_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self._bundle = bundle
        self._dtype = getattr(torch, dtype)
        self._device = device
        self._max_beam_rows = max_beam_rows
        self._filter_cache_bytes = filter_cache_bytes
        self._decoder: TorchDecoder | None = None
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="torch-engine")

    async def start(self) -> None:
        """Load model and trie in the decode thread and start the batching loop."""
        loop = asyncio.get_running_loop()
        self._decoder = await loop.run_in_executor(self._thread, self._load)
        self._worker = asyncio.create_task(self._run(), name="torch-engine")

    def _load(self) -> TorchDecoder:
        from transformers import AutoModelForCausalLM

        auto: Any = AutoModelForCausalLM  # its own annotations hide the class method's path argument
        model = auto.from_pretrained(
            str(self._bundle.model_dir), dtype=self._dtype, local_files_only=True, use_safetensors=True
        )
        return TorchDecoder(
            model.to(self._device), self._open(self._bundle.path), self._bundle.manifest.levels
        )

    @property
    def is_alive(self) -> bool:
        """False before `start`, after `close`, or if the batching loop ended."""
        return self._worker is not None and not self._worker.done()

    async def decode(self, request: DecodeRequest) -> Beams:
        """Queue a request for the next batch. A cancelled request that still waits is dropped."""
        if not self.is_alive:
            raise EngineDead("the torch engine is not running")
        future: asyncio.Future[Beams] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, future))
        self._wake.set()
        return await future

    async def load_catalogue(self, directory: Path) -> None:
        """As `Engine.load_catalogue`; installed by the decode thread, so between two batches."""
        space = await asyncio.to_thread(self._open, directory)
        await asyncio.to_thread(space.check, self._bundle.manifest.codebook_sizes)
        await self._between_batches(lambda decoder: decoder.install(space))

    async def hide_rows(self, rows: np.ndarray, trie_version: str) -> None:
        """As `Engine.hide_rows`."""
        await self._between_batches(lambda decoder: decoder.spaces.of(trie_version).hide(rows))

    def _open(self, directory: Path) -> SearchSpace:
        return SearchSpace.open(directory, device=self._device, filter_cache_bytes=self._filter_cache_bytes)

    async def _between_batches(self, change: Callable[[TorchDecoder], None]) -> None:
        if self._decoder is None or not self.is_alive:
            raise EngineDead("the torch engine is not running")
        await asyncio.get_running_loop().run_in_executor(self._thread, change, self._decoder)

    async def close(self) -> None:
        """Stop the loop; waiting requests fail with EngineDead."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for waiting in self._waiting:
            if not waiting.future.done():
                waiting.future.set_exception(EngineDead("the torch engine was closed"))
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            batch = self._next_batch()
            if not batch:
                self._wake.clear()
                continue
            try:
                beams = await loop.run_in_executor(self._thread, self._decode, [w.request for w in batch])
            except asyncio.CancelledError:
                for waiting in batch:
                    waiting.future.cancel()
                raise
            except Exception as error:
                is_ours = isinstance(error, StaleCatalogue)
                for waiting in batch:
                    if not waiting.future.done():
                        failure = error if is_ours else EngineError(f"decoding failed: {error}")
                        waiting.future.set_exception(failure)
                continue
            for waiting, result in zip(batch, beams, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(result)

    def _next_batch(self) -> list[_Waiting]:
        """Waiting requests of one catalogue version in order of arrival, until the beam rows are used up."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting:
            waiting = self._waiting[0]
            if waiting.future.done():  # cancelled by its caller
                self._waiting.pop(0)
                continue
            rows += waiting.request.max_beams
            is_other = batch and waiting.request.trie_version != batch[0].request.trie_version
            if is_other or (batch and rows > self._max_beam_rows):
                break
            batch.append(self._waiting.pop(0))
        return batch

    def _decode(self, requests: list[DecodeRequest]) -> list[Beams]:
        assert self._decoder is not None
        return self._decoder.decode(
            [r.prompt_token_ids for r in requests],
            [r.beam_width for r in requests],
            [r.exclude_rows for r in requests],
            filters=[r.filter for r in requests],
            wanted=[r.num_items for r in requests],
            trie_version=requests[0].trie_version,
        )
