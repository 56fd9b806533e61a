"""Decodes of fixed shapes equal plain ones: padding and static steps change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.decoding.search_space import SearchSpace
from service.engine.recorded_decode import record_nothing
from service.engine.torch_engine import TorchDecoder


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_recorded_decodes_equal_plain_ones(tiny_bundle: Callable[[str], Any], kind: str) -> None:
    tiny = tiny_bundle(kind)
    levels = tiny.bundle.manifest.levels
    plain, recorded = (TorchDecoder(tiny.model, SearchSpace.open(tiny.bundle.path), levels) for _ in range(2))
    recorded.record(record_nothing)
    rng = np.random.default_rng(1)
    some = plain.spaces.newest.compile({"item_id": {"in": [f"i{n}" for n in range(0, 150, 4)]}})
    few = plain.spaces.newest.compile({"item_id": {"in": ["i3", "i77"]}})
    for num_requests in (1, 3, 4, 5):
        prompts = [tiny.prompt(int(n)) for n in rng.integers(1, 90, num_requests)]
        widths = rng.integers(1, 30, num_requests).tolist()
        wanted = rng.choice([0, 5, 40], num_requests).tolist()
        excluded = [
            None if n % 2 else np.sort(rng.choice(150, 70, replace=False)) for n in range(num_requests)
        ]
        for filters in ([None] * num_requests, [[some, None, few][n % 3] for n in range(num_requests)]):
            expected = plain.decode(prompts, widths, excluded, filters=filters, wanted=wanted)
            found = recorded.decode(prompts, widths, excluded, filters=filters, wanted=wanted)
            for one, other in zip(found, expected, strict=True):
                assert one.codes.tolist() == other.codes.tolist()
                assert one.first_row.tolist() == other.first_row.tolist()
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_shape_is_recorded_once_and_forgotten_with_its_catalogue(tiny_bundle: Callable[[str], Any]) -> None:
    tiny = tiny_bundle("qwen3")
    decoder = TorchDecoder(tiny.model, SearchSpace.open(tiny.bundle.path), tiny.bundle.manifest.levels)
    num_recorded = 0

    def count(search: Callable[[], Any]) -> Callable[[], Any]:
        nonlocal num_recorded
        num_recorded += 1
        return search

    decoder.record(count)
    for length, width in ((5, 3), (60, 8), (64, 1), (65, 3), (5, 9), (7, 4)):
        (beams,) = decoder.decode([tiny.prompt(length)], [width])
        assert len(beams.codes) == width
    assert num_recorded == 3  # 64 and 128 tokens, and 16 beams
    decoder.install(SearchSpace.open(tiny.bundle.path))
    decoder.decode([tiny.prompt(5)], [3])
    assert num_recorded == 4
