"""The `vllm_pooling` engine: one pooling request to vLLM per recommendation.

vLLM schedules, batches and caches the prompts; the beam search runs inside its worker (see
vllm_pooler.py) and the reply carries the beams.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from service.bundle import Bundle
from service.decoding.beam_search import Beams
from service.decoding.search_space import SearchSpace, SearchSpaces
from service.engine.gate import BeamGate
from service.engine.protocol import DecodeRequest
from service.engine.vllm_messages import (
    RequestExtras,
    UnknownCacheLayout,
    check_request,
    unpack_reply,
)
from service.engine.vllm_options import VllmOptions, WorkerSettings
from service.engine.vllm_version import check_version, prepare_environment
from service.errors import EngineDead, EngineError
from service.observability import metrics

# vLLM's names are imported when an engine starts: the environment must be prepared before.
if TYPE_CHECKING:
    from vllm import PoolingRequestOutput

    from service.engine.vllm_host import VllmHost

SELF_TEST_TOKENS = 45  # more than one cache block of 32

logger = logging.getLogger(__name__)


class VllmPoolingEngine:
    """Serves a bundle through vLLM; see `Engine`.

    Args:
        bundle: what to serve; Llama, Mistral, Qwen2 or Qwen3 with full attention.
        options: how to run vLLM.
    """

    name = "vllm_pooling"

    def __init__(self, bundle: Bundle, options: VllmOptions | None = None) -> None:
        self._bundle = bundle
        self._options = options or VllmOptions()
        self._host: VllmHost | None = None
        self._gate = BeamGate(self._options.max_beam_rows)
        self._spaces: SearchSpaces | None = None  # for checks; the worker has its own

    @property
    def options(self) -> VllmOptions:
        """The options in use; `cache_reader` changes where the paged cache cannot be read."""
        return self._options

    async def start(self) -> None:
        """Start vLLM and test it with two requests.

        Raises:
            EngineError: vLLM is of another version, or cannot serve this bundle.
        """
        prepare_environment(threads=self._options.threads, compile=self._options.compile)
        await asyncio.to_thread(check_version)
        await asyncio.to_thread(_import_all)
        self._spaces, _ = WorkerSettings.of(self._bundle, self._options).open_catalogue()
        try:
            await self._start_once()
        except UnknownCacheLayout as error:
            await self.close()
            if self._options.cache_reader == "stash":
                raise
            logger.warning(
                "%s; starting again without prefix cache and chunked prefill, which is slower", error
            )
            self._options = dataclasses.replace(self._options, cache_reader="stash", compile=False)
            await self._start_once()

    async def _start_once(self) -> None:
        from service.engine.vllm_arguments import pooling_arguments
        from service.engine.vllm_host import VllmHost
        from service.engine.vllm_plugin import register_class

        arguments = pooling_arguments(self._bundle, self._options)
        await asyncio.to_thread(register_class, self._bundle.manifest.architecture)
        self._host = VllmHost(arguments, shutdown_timeout_s=self._options.shutdown_timeout_s)
        try:
            await self._host.start()
            await self._self_test()
        except BaseException:
            await self._host.close()
            raise

    async def _self_test(self) -> None:
        """Decode one prompt twice, the second time from the prefix cache.

        The worker compares what it reads and finds with the torch engine's way of doing it.
        """
        manifest = self._bundle.manifest
        history = manifest.tokens_of(self._bundle.semantic_ids[: manifest.prompt.history_limit])
        prompt = manifest.prompt.token_ids(history)[:SELF_TEST_TOKENS]
        extras = RequestExtras(beam_width=4, self_test=prompt)
        first = await self._ask(prompt, extras, "self-test-1")
        second = await self._ask(prompt, extras, "self-test-2")
        if not np.allclose(first.logprobs, second.logprobs, rtol=0.05, atol=0.05):
            raise UnknownCacheLayout("the second answer to the same prompt differs from the first")

    async def decode(self, request: DecodeRequest) -> Beams:
        """As `Engine.decode`.

        Raises:
            RequestError: the prompt is empty or longer than the bundle's longest prompt.
            StaleCatalogue: the request names a catalogue that is not held any more.
            EngineDead: the engine is not running, or died.
            EngineError: the engine failed on this request.
        """
        if self._spaces is None:
            raise EngineDead("vllm_pooling is not started")
        trie = self._spaces.of(request.trie_version).trie
        check_request(request, self._bundle, trie.num_items)
        # The version is always named: excluded rows mean nothing without it.
        extras = RequestExtras(
            request.beam_width, request.exclude_rows, trie.version, request.filter, request.num_items
        )
        async with self._gate.hold(request.max_beams):
            beams = await self._ask(request.prompt_token_ids, extras, request.request_id)
        if beams.trie_version != trie.version:
            raise EngineError(f"the worker decoded with trie {beams.trie_version} instead of {trie.version}")
        return beams

    async def load_catalogue(self, directory: Path) -> None:
        """As `Engine.load_catalogue`; read through here, exchanged in the worker between two steps."""
        if self._host is None or self._spaces is None:
            raise EngineDead("vllm_pooling is not started")
        space = await asyncio.to_thread(SearchSpace.open, directory)
        await asyncio.to_thread(space.check, self._bundle.manifest.codebook_sizes)
        await self._host.ask_workers("gtirec_load_catalogue", str(directory.resolve()))
        self._spaces.install(space)

    async def hide_rows(self, rows: np.ndarray, trie_version: str) -> None:
        """As `Engine.hide_rows`."""
        if self._host is None or self._spaces is None:
            raise EngineDead("vllm_pooling is not started")
        self._spaces.of(trie_version)
        packed = np.asarray(rows, dtype="<i8").tobytes()
        await self._host.ask_workers("gtirec_hide_rows", packed, trie_version)

    async def _ask(self, prompt: Sequence[int], extras: RequestExtras, request_id: str) -> Beams:
        from vllm import PoolingParams
        from vllm.inputs.engine import tokens_input

        if self._host is None:
            raise EngineDead("vllm_pooling is not started")
        params = PoolingParams(task="embed", extra_kwargs=extras.pack())
        replies = self._host.client.encode(tokens_input([int(token) for token in prompt]), params, request_id)
        reply = await self._host.run(_only_reply(replies))
        metrics.PROMPT_TOKENS.labels(kind="cached").inc(reply.num_cached_tokens)
        metrics.PROMPT_TOKENS.labels(kind="computed").inc(len(prompt) - reply.num_cached_tokens)
        return unpack_reply(reply.outputs.data)

    @property
    def is_alive(self) -> bool:
        """False before `start`, after `close`, and once vLLM's processes are known to be gone."""
        return self._host is not None and self._host.is_alive

    async def close(self) -> None:
        """End vLLM's processes. Idempotent."""
        if self._host is not None:
            await self._host.close()


async def _only_reply(outputs: AsyncGenerator[PoolingRequestOutput, None]) -> PoolingRequestOutput:
    async with aclosing(outputs):
        async for output in outputs:
            return output
    raise EngineError("vLLM ended the request without an answer")


def _import_all() -> None:
    """Import what `start` needs, in a thread: vLLM takes seconds."""
    import service.engine.vllm_arguments
    import service.engine.vllm_host  # noqa: F401
