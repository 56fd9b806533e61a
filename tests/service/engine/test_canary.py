"""The test request refuses every kind of wrong answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.engine.canary import Canary
from service.errors import EngineError

pytestmark = pytest.mark.anyio


def spoiled(beams, spoil):
    arrays = {name: getattr(beams, name).copy() for name in ("codes", "logprobs", "first_row", "end_row")}
    return replace(beams, **{**arrays, **spoil(arrays)})


WRONG = {
    "another trie": lambda a: {"trie_version": "f" * 16},
    "no beams": lambda a: {name: array[:0] for name, array in a.items()},
    "not a number": lambda a: {"logprobs": a["logprobs"] * np.nan},
    "no log-probability": lambda a: {"logprobs": a["logprobs"] + 100},
    "not sorted": lambda a: {"logprobs": a["logprobs"][::-1]},
    "rows outside": lambda a: {"end_row": a["end_row"] + 1000},
    "negative rows": lambda a: {"first_row": a["first_row"] - 1000},
    "invented SIDs": lambda a: {"codes": (a["codes"] + 1) % 4},
}


async def test_accepts_a_right_answer(fake_engine, small_bundle):
    await fake_engine.start()
    await Canary(small_bundle)(fake_engine)


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG.keys())
async def test_refuses_wrong_answers(fake_engine, small_bundle, spoil):
    class Spoiler(type(fake_engine)):
        async def decode(self, request):
            return spoiled(await super().decode(request), spoil)

    engine = Spoiler(small_bundle)
    await engine.start()
    with pytest.raises(EngineError, match="test answer"):
        await Canary(small_bundle)(engine)
