"""The `vllm_logits` engine: a beam search driven from outside, level by level, one request per beam.

Every beam of a level is an ordinary one-token generate request whose logits the trie logits
processor masks; vLLM's prefix cache keeps the prompt. Slower than `vllm_pooling` (B * L requests
instead of one), but it needs nothing of vLLM's insides: any architecture, tensor parallelism.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.bundle import Bundle
from service.decoding.beam_search import Beams
from service.decoding.search_space import SearchSpace, SearchSpaces
from service.engine.protocol import DecodeRequest
from service.engine.vllm_level_driver import BeamQuery, LevelDriver, Scores, read_scores, sampling_params
from service.engine.vllm_messages import check_request
from service.engine.vllm_options import VllmOptions, WorkerSettings
from service.engine.vllm_version import check_version, prepare_environment
from service.errors import EngineDead, EngineError

# vLLM's names are imported when an engine starts: the environment must be prepared before.
if TYPE_CHECKING:
    from service.engine.vllm_host import VllmHost


class VllmLogitsEngine:
    """Serves a bundle through vLLM's generate requests; see `Engine`.

    Args:
        bundle: what to serve.
        options: how to run vLLM.
    """

    name = "vllm_logits"

    def __init__(self, bundle: Bundle, options: VllmOptions | None = None) -> None:
        self._bundle = bundle
        self._options = options or VllmOptions()
        self._host: VllmHost | None = None
        self._driver: LevelDriver | None = None
        self._spaces: SearchSpaces | None = None

    async def start(self) -> None:
        """Start vLLM.

        Raises:
            EngineError: vLLM is of another version, or cannot load this bundle.
        """
        prepare_environment(threads=self._options.threads, compile=self._options.compile)
        await asyncio.to_thread(check_version)
        host_class, arguments_of = await asyncio.to_thread(_import_all)
        self._spaces, levels = WorkerSettings.of(self._bundle, self._options).open_catalogue()
        self._driver = LevelDriver(levels)
        arguments = arguments_of(self._bundle, self._options)
        host = self._host = host_class(arguments, shutdown_timeout_s=self._options.shutdown_timeout_s)
        try:
            await host.start()
        except BaseException:
            await host.close()
            raise

    async def decode(self, request: DecodeRequest) -> Beams:
        """As `Engine.decode`.

        Raises:
            RequestError: the prompt is empty or longer than the bundle's longest prompt.
            StaleCatalogue: the request names a catalogue that is not held any more.
            EngineDead: the engine is not running, or died.
            EngineError: the engine failed on this request.
        """
        if self._host is None or self._driver is None or self._spaces is None:
            raise EngineDead("vllm_logits is not started")
        host, space = self._host, self._spaces.of(request.trie_version)
        check_request(request, self._bundle, space.trie.num_items)
        num_scored = 0

        async def score(queries: Sequence[BeamQuery]) -> Sequence[Scores]:
            nonlocal num_scored
            first, num_scored = num_scored, num_scored + len(queries)
            names = [f"{request.request_id}-{first + n}" for n in range(len(queries))]
            return await host.run(_score_all(host.client, queries, names))

        return await self._driver.decode(request, space, score)

    async def load_catalogue(self, directory: Path) -> None:
        """As `Engine.load_catalogue`; the workers have it before the first request that needs it."""
        if self._host is None or self._spaces is None:
            raise EngineDead("vllm_logits is not started")
        space = await asyncio.to_thread(SearchSpace.open, directory)
        await asyncio.to_thread(space.check, self._bundle.manifest.codebook_sizes)
        await self._host.ask_workers("gtirec_load_catalogue", str(directory.resolve()))
        self._spaces.install(space)

    async def hide_rows(self, rows: np.ndarray, trie_version: str) -> None:
        """As `Engine.hide_rows`; the beam search runs here, the workers need not know."""
        if self._spaces is None or not self.is_alive:
            raise EngineDead("vllm_logits is not started")
        self._spaces.of(trie_version).hide(rows)

    @property
    def is_alive(self) -> bool:
        """False before `start`, after `close`, and once vLLM's processes are known to be gone."""
        return self._host is not None and self._host.is_alive

    async def close(self) -> None:
        """End vLLM's processes. Idempotent."""
        if self._host is not None:
            await self._host.close()


async def _score_all(client: Any, queries: Sequence[BeamQuery], names: Sequence[str]) -> list[Scores]:
    """All beams of a level at once; if one fails or the caller gives up, the others are aborted."""
    from vllm.inputs.engine import tokens_input

    async def score_one(query: BeamQuery, name: str) -> Scores:
        outputs: AsyncGenerator[Any, None] = client.generate(
            tokens_input(query.prompt), sampling_params(query), name
        )
        async with aclosing(outputs):
            async for output in outputs:
                return read_scores(output)
        raise EngineError("vLLM ended the request without an answer")

    tasks = [asyncio.ensure_future(score_one(q, name)) for q, name in zip(queries, names, strict=True)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _import_all() -> tuple[type[VllmHost], Any]:
    """Import what `start` needs, in a thread: vLLM takes seconds."""
    from service.engine.vllm_arguments import logits_arguments
    from service.engine.vllm_host import VllmHost

    return VllmHost, logits_arguments
