"""The logits processor and the level driver inside a real vLLM (in this process) against brute force."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from service.engine.protocol import DecodeRequest
from service.engine.torch_engine import TorchDecoder
from service.engine.vllm_arguments import logits_arguments
from service.engine.vllm_level_driver import BeamQuery, LevelDriver, Scores, read_scores, sampling_params
from service.engine.vllm_options import VllmOptions, WorkerSettings
from service.engine.vllm_token_trie import NODE_KEY
from service.engine.vllm_version import prepare_environment

pytestmark = [pytest.mark.vllm, pytest.mark.xdist_group("vllm")]  # one worker starts all engines


class Logits:
    """A level driver on a local engine."""

    def __init__(self, tiny: Any, local: Any) -> None:
        self.tiny, self.local = tiny, local
        spaces, self.levels = WorkerSettings.of(tiny.bundle, VllmOptions()).open_catalogue()
        self.space = spaces.newest
        self._driver = LevelDriver(self.levels)
        self.num_scored = 0

    def decode(self, request: DecodeRequest) -> Any:
        async def score(queries: Sequence[BeamQuery]) -> list[Scores]:
            self.num_scored += len(queries)
            outputs = self.local.run([q.prompt for q in queries], [*map(sampling_params, queries)])
            return [read_scores(output) for output in outputs]

        return asyncio.run(self._driver.decode(request, self.space, score))


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def logits(
    request: pytest.FixtureRequest, tiny_bundle: Callable[[str], Any], start_local: Callable[..., Any]
) -> Iterator[Logits]:
    tiny = tiny_bundle(request.param)
    prepare_environment(threads=2)
    options = VllmOptions(cpu_kv_cache_gib=0.1, max_num_seqs=64)  # fewer than beams: several steps a level
    with start_local(logits_arguments(tiny.bundle, options)) as local:
        yield Logits(tiny, local)


def test_full_width_equals_the_exhaustive_ranking(logits: Logits) -> None:
    tiny = logits.tiny
    for length in (1, 33, tiny.longest_prompt):
        prompt = tiny.prompt(length)
        beams = logits.decode(DecodeRequest(prompt, 1000, "r"))
        expected = tiny.exhaustive(prompt)
        order = np.argsort(-expected, kind="stable")
        assert beams.codes.tolist() == tiny.sids[order].tolist()
        assert beams.logprobs == pytest.approx(expected[order], abs=1e-4)


def test_narrow_beams_and_exclusions_equal_the_torch_engine(logits: Logits) -> None:
    tiny = logits.tiny
    num_items = tiny.bundle.manifest.num_items
    decoder = TorchDecoder(tiny.model, logits.space, logits.levels)
    cases = [(1, None), (5, None), (5, np.arange(0, num_items, 2)), (2, np.arange(num_items - 3))]
    some = logits.space.compile({"item_id": {"in": [f"i{n}" for n in range(0, num_items, 5)]}})
    for n, (width, rows) in enumerate([*cases, (3, np.arange(num_items))]):
        prompt, condition, k = tiny.prompt(20, seed=width), (None, some)[n % 2], (0, 12)[n // 2 % 2]
        beams = logits.decode(DecodeRequest(prompt, width, "r", rows, filter=condition, num_items=k))
        (expected,) = decoder.decode([prompt], [width], [rows], filters=[condition], wanted=[k])
        assert beams.codes.tolist() == expected.codes.tolist()
        assert beams.first_row.tolist() == expected.first_row.tolist()
        assert beams.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_sampled_requests_spell_items_and_others_are_left_alone(logits: Logits) -> None:
    from vllm import SamplingParams

    tiny = logits.tiny
    tokens = {tuple(sid) for sid in tiny.bundle.manifest.tokens_of(tiny.sids).tolist()}
    common = {"max_tokens": 3, "ignore_eos": True, "detokenize": False}
    params = [
        SamplingParams(temperature=1.0, seed=n, extra_args={NODE_KEY: 0} if n % 3 else None, **common)
        for n in range(60)
    ]
    outputs = logits.local.run([tiny.prompt(1 + n, seed=n) for n in range(60)], params)
    spelled = [tuple(output.outputs[0].token_ids) for output in outputs]
    assert all(spelled[n] in tokens for n in range(60) if n % 3)
    assert len({spelled[n] for n in range(60) if n % 3}) > 10
    assert not all(spelled[n] in tokens for n in range(0, 60, 3))
