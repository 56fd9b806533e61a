"""The engines on vLLM, each in this very process: no sockets, no second scheduler, same for all.

vLLM 0.32.0 runs in one process only with the "uni" executor and VLLM_ENABLE_V1_MULTIPROCESSING=0.
All of them run eager with blocks of 32 tokens: vLLM's CPU default of 128 is several times slower
for the engines that send one request per beam.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.bundle import load_bundle
from service.decoding.beam_search import Beams
from service.decoding.search_space import SearchSpace
from service.engine.protocol import DecodeRequest
from service.engine.vllm_options import VllmOptions

CACHE_GIB = 0.5


class LocalVllm:
    """A vLLM engine inside this process, which runs what it is given together."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments, distributed_executor_backend="uni"))
        self._num_requests = 0

    def run(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        """Outputs of requests that are all waiting before the first step."""
        from vllm.inputs.engine import tokens_input

        first = self._num_requests
        self._num_requests += len(prompts)
        names = [str(first + n) for n in range(len(prompts))]
        for name, prompt, param in zip(names, prompts, params, strict=True):
            self._engine.add_request(name, tokens_input(list(prompt)), param)
        outputs: dict[str, Any] = {}
        while self._engine.has_unfinished_requests():
            outputs |= {output.request_id: output for output in self._engine.step()}
        return [outputs[name] for name in names]


class VllmPoolingBench:
    """Our default engine: one pooling request per recommendation."""

    def __init__(self, bundle_dir: Path, dtype: str, max_width: int) -> None:
        from service.engine.vllm_arguments import pooling_arguments
        from service.engine.vllm_plugin import register_class

        bundle = load_bundle(bundle_dir)
        register_class(bundle.manifest.architecture)
        options = VllmOptions(dtype=dtype, cpu_kv_cache_gib=CACHE_GIB)
        self._local = LocalVllm(pooling_arguments(bundle, options))
        self._space = SearchSpace.open(bundle_dir)

    def decode(self, prompts: list[list[int]], width: int, only: dict[str, Any] | None) -> list[np.ndarray]:
        """SIDs of every prompt, best first. Shapes: (B, L)."""
        chosen = None if only is None else self._space.compile(only)
        return [beams.codes for beams in self.answer(prompts, [(width, chosen, None)] * len(prompts))]

    def answer(
        self, prompts: list[list[int]], wishes: list[tuple[int, str | None, np.ndarray | None]]
    ) -> list[Beams]:
        """Requests of different width, canonical filter and excluded rows, decoded together."""
        from vllm import PoolingParams

        from service.engine.vllm_messages import RequestExtras, unpack_reply

        extras = [RequestExtras(width, excluded, filter=name).pack() for width, name, excluded in wishes]
        params = [PoolingParams(task="embed", extra_kwargs=extra) for extra in extras]
        return [unpack_reply(output.outputs.data) for output in self._local.run(prompts, params)]


class VllmLogitsBench:
    """Our compatibility engine: level by level, one generate request per beam."""

    def __init__(self, bundle_dir: Path, dtype: str, max_width: int) -> None:
        from service.engine.vllm_arguments import logits_arguments
        from service.engine.vllm_level_driver import LevelDriver

        bundle = load_bundle(bundle_dir)
        options = VllmOptions(dtype=dtype, cpu_kv_cache_gib=CACHE_GIB, max_num_seqs=1100)
        self._space = SearchSpace.open(bundle_dir)
        self._driver = LevelDriver(bundle.manifest.levels)
        self._local = LocalVllm(logits_arguments(bundle, options))

    def decode(self, prompts: list[list[int]], width: int, only: None) -> list[np.ndarray]:
        return asyncio.run(self._decode(prompts, width))

    async def _decode(self, prompts: list[list[int]], width: int) -> list[np.ndarray]:
        """All requests advance together: a level of all of them is one batch."""
        level = _Gathering(self._local, len(prompts))
        requests = [DecodeRequest(prompt, width, str(n)) for n, prompt in enumerate(prompts)]
        found = await asyncio.gather(*(self._driver.decode(r, self._space, level.score) for r in requests))
        return [beams.codes for beams in found]


class _Gathering:
    """Collects the queries of one level of all requests and runs them in one batch."""

    def __init__(self, local: LocalVllm, num_requests: int) -> None:
        self._local = local
        self._num_requests = num_requests
        self._waiting: list[tuple[Sequence[Any], asyncio.Future[Any]]] = []

    async def score(self, queries: Sequence[Any]) -> Sequence[Any]:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((queries, future))
        if len(self._waiting) == self._num_requests:
            self._run()
        return await future

    def _run(self) -> None:
        from service.engine.vllm_level_driver import read_scores, sampling_params

        waiting, self._waiting = self._waiting, []
        queries = [query for group, _ in waiting for query in group]
        outputs = self._local.run([q.prompt for q in queries], [sampling_params(q) for q in queries])
        scores = iter([read_scores(output) for output in outputs])
        for group, future in waiting:
            future.set_result([next(scores) for _ in group])


class VllmBeamBench:
    """vLLM's own `LLM.beam_search`: no constraint, so few of its answers are items."""

    def __init__(self, bundle_dir: Path, dtype: str, max_width: int) -> None:
        from vllm import LLM

        bundle = load_bundle(bundle_dir)
        self._first_ids = np.asarray([level.first_token_id for level in bundle.manifest.levels])
        self._llm = LLM(
            model=str(bundle.model_dir),
            dtype=dtype,
            max_model_len=256,
            block_size=32,
            enforce_eager=True,
            distributed_executor_backend="uni",
            kv_cache_memory_bytes=int(CACHE_GIB * 2**30),
            max_num_seqs=1100,
            max_num_batched_tokens=4096,
            max_logprobs=2 * max_width,
            disable_log_stats=True,
        )

    def decode(self, prompts: list[list[int]], width: int, only: None) -> list[np.ndarray]:
        from vllm.sampling_params import BeamSearchParams

        num_levels = len(self._first_ids)
        found = self._llm.beam_search(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            BeamSearchParams(beam_width=width, max_tokens=num_levels, ignore_eos=True),
            use_tqdm=False,
        )
        return [
            np.asarray([beam.tokens[-num_levels:] for beam in output.sequences]) - self._first_ids
            for output in found
        ]
