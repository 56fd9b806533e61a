"""The pooler inside a real vLLM (in this process) against brute force and the torch engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from service.engine.torch_engine import TorchDecoder
from service.engine.vllm_arguments import pooling_arguments
from service.engine.vllm_messages import RequestExtras, UnknownCacheLayout, unpack_reply
from service.engine.vllm_options import VllmOptions, WorkerSettings
from service.engine.vllm_plugin import register_class
from service.engine.vllm_version import prepare_environment
from service.errors import EngineError

pytestmark = [pytest.mark.vllm, pytest.mark.xdist_group("vllm")]  # one worker starts all engines

# One engine each. The first reads long prompts in pieces, the second decodes in small groups.
VARIANTS = {
    "qwen3-chunked": ("qwen3", {"max_num_batched_tokens": 64, "max_num_seqs": 8}),
    "llama-grouped": ("llama", {"max_beam_rows": 60}),
    "qwen3-stash": ("qwen3", {"cache_reader": "stash"}),
}


class Pooling:
    """Runs batches on a local engine, and knows the bundle."""

    def __init__(self, tiny: Any, local: Any) -> None:
        self.tiny = tiny
        self.local = local

    def replies(self, prompts: list[list[int]], extras: list[dict[str, Any] | None]) -> list[Any]:
        from vllm import PoolingParams

        params = [PoolingParams(task="embed", extra_kwargs=extra) for extra in extras]
        return [output.outputs.data for output in self.local.run(prompts, params)]

    def decode(self, prompts: list[list[int]], requests: list[RequestExtras]) -> list[Any]:
        return [unpack_reply(reply) for reply in self.replies(prompts, [r.pack() for r in requests])]


@pytest.fixture(scope="module", params=VARIANTS)
def pooling(
    request: pytest.FixtureRequest, tiny_bundle: Callable[[str], Any], start_local: Callable[..., Any]
) -> Iterator[Pooling]:
    kind, options = VARIANTS[request.param]
    tiny = tiny_bundle(kind)
    prepare_environment(threads=2)
    register_class(tiny.bundle.manifest.architecture)
    arguments = pooling_arguments(tiny.bundle, VllmOptions(cpu_kv_cache_gib=0.1, **options))
    with start_local(arguments) as local:
        yield Pooling(tiny, local)


def prompts_of(tiny: Any) -> list[list[int]]:
    """One token, the longest prompt, and lengths around the size of a cache block."""
    return [tiny.prompt(n) for n in (1, tiny.longest_prompt, 31, 32, 33, 64, 65, 7)]


def test_full_width_equals_the_exhaustive_ranking_in_one_mixed_batch(pooling: Pooling) -> None:
    tiny = pooling.tiny
    prompts = prompts_of(tiny)
    widths = [len(tiny.sids) + n for n in range(len(prompts))]
    for prompt, beams in zip(prompts, pooling.decode(prompts, [*map(RequestExtras, widths)]), strict=True):
        expected = tiny.exhaustive(prompt)
        order = np.argsort(-expected, kind="stable")
        assert beams.codes.tolist() == tiny.sids[order].tolist()
        assert beams.logprobs == pytest.approx(expected[order], abs=1e-4)
        assert (tiny.bundle.semantic_ids[beams.first_row] == beams.codes).all()
        assert (tiny.bundle.semantic_ids[beams.end_row - 1] == beams.codes).all()
        assert (beams.end_row - beams.first_row).sum() == tiny.bundle.manifest.num_items
        assert beams.trie_version == tiny.bundle.manifest.trie_version


def test_mixed_widths_filters_and_exclusions_equal_the_torch_engine(pooling: Pooling) -> None:
    tiny = pooling.tiny
    spaces, levels = WorkerSettings.of(tiny.bundle, VllmOptions()).open_catalogue()
    num_items = tiny.bundle.manifest.num_items
    prompts = prompts_of(tiny)
    widths = [5, 20, 1, 1000, 7, 12, 3, 50]
    excluded = [None, np.arange(0, num_items, 2), None, np.arange(num_items - 3), None, np.array([3]), None]
    excluded.append(np.arange(num_items))
    some = spaces.newest.compile({"item_id": {"in": [f"i{n}" for n in range(0, num_items, 5)]}})
    few = spaces.newest.compile({"item_id": {"in": ["i7", "i100"]}})
    filters = [None, some, few, some, None, None, few, None]
    wanted = [0, 30, 10, 0, 5, 40, 0, 60]
    requests = [
        RequestExtras(w, rows, filter=f, num_items=k)
        for w, rows, f, k in zip(widths, excluded, filters, wanted, strict=True)
    ]
    expected = TorchDecoder(tiny.model, spaces.newest, levels).decode(
        prompts, widths, excluded, filters=filters, wanted=wanted
    )
    for _ in range(2):  # the second time from the prefix cache
        for beams, reference in zip(pooling.decode(prompts, requests), expected, strict=True):
            assert beams.codes.tolist() == reference.codes.tolist()
            assert beams.first_row.tolist() == reference.first_row.tolist()
            assert beams.logprobs == pytest.approx(reference.logprobs, abs=1e-4)


def test_a_bad_request_gets_a_sentence_and_harms_nobody(pooling: Pooling) -> None:
    prompts = [pooling.tiny.prompt(n) for n in (4, 5, 6)]
    good = RequestExtras(3).pack()
    bad = good | {"exclude_rows": b"not a multiple of eight"}
    replies = pooling.replies(prompts, [None, bad, good])
    with pytest.raises(EngineError, match="beam_width"):
        unpack_reply(replies[0])
    with pytest.raises(EngineError):
        unpack_reply(replies[1])
    assert len(unpack_reply(replies[2]).codes) == 3


def test_the_self_test_tells_right_keys_and_values_from_wrong_ones(pooling: Pooling) -> None:
    prompt = pooling.tiny.prompt(40)
    (beams,) = pooling.decode([prompt], [RequestExtras(2, self_test=prompt)])
    assert len(beams.codes) == 2
    with pytest.raises(UnknownCacheLayout, match="not the model's"):
        pooling.decode([prompt], [RequestExtras(2, self_test=prompt[::-1])])


def test_the_largest_decode_can_be_rehearsed_for_a_memory_profile(pooling: Pooling) -> None:
    model = pooling.local.model
    widths = []

    class Recording(type(model.pooler)):  # type: ignore[misc]
        def _search(self, cache: Any, state: Any) -> Any:
            widths.append((cache.keys[0].shape[2], len(state.nodes) * state.max_width))
            return super()._search(cache, state)

    pooler = model.pooler
    pooler.__class__ = Recording
    try:
        pooler.rehearse(torch.zeros(1, model.config.hidden_size))
    finally:
        pooler.__class__ = Recording.__mro__[1]
    ((longest, rows),) = widths
    assert longest == pooling.tiny.longest_prompt + 3
    assert 0.8 * pooler._settings.max_beam_rows <= rows <= pooler._settings.max_beam_rows


def test_half_precision_passes_the_self_test(
    tiny_bundle: Callable[[str], Any], start_local: Callable[..., Any]
) -> None:
    """On a CPU with AMX this is another cache layout than float32's (vLLM 0.32.0)."""
    tiny = tiny_bundle("qwen3")
    prepare_environment(threads=2)
    register_class(tiny.bundle.manifest.architecture)
    options = VllmOptions(cpu_kv_cache_gib=0.1, dtype="bfloat16")
    with start_local(pooling_arguments(tiny.bundle, options)) as local:
        half = Pooling(tiny, local)
        prompts = [tiny.prompt(n) for n in (1, 40, tiny.longest_prompt)]
        requests = [RequestExtras(5, self_test=prompt) for prompt in prompts]
        for _ in range(2):
            for beams in half.decode(prompts, requests):
                assert len(beams.codes) == 5
        with pytest.raises(UnknownCacheLayout, match="not the model's"):
            half.decode(prompts[1:2], [RequestExtras(2, self_test=prompts[1][::-1])])
