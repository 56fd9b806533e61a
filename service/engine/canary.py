"""One decode request of the service's own, to see that an engine really answers for this bundle."""

from __future__ import annotations

import uuid

import numpy as np

from service.bundle import Bundle
from service.engine.protocol import Beams, DecodeRequest, Engine
from service.errors import EngineError

BEAM_WIDTH = 4


class Canary:
    """Decodes after a history of the most popular item and checks what comes back.

    Args:
        bundle: the bundle that the engine should serve.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        codes = bundle.semantic_ids[bundle.popular_rows[:1]]
        self._bundle = bundle
        self._prompt = manifest.prompt.token_ids(manifest.tokens_of(codes))

    async def __call__(self, engine: Engine) -> None:
        """Run it once.

        Raises:
            EngineError: the answer is empty, unsorted, not of this bundle, or no log-probability.
        """
        request_id = f"canary-{uuid.uuid4().hex}"
        beams = await engine.decode(DecodeRequest(self._prompt, BEAM_WIDTH, request_id))
        if problem := self._problem(beams):
            raise EngineError(f"the engine's test answer {problem}; it does not fit this bundle")

    def _problem(self, beams: Beams) -> str:
        manifest = self._bundle.manifest
        if beams.trie_version != manifest.trie_version:
            return f"comes from trie {beams.trie_version}, the bundle has {manifest.trie_version}"
        if not 1 <= len(beams.codes) <= BEAM_WIDTH:
            return f"has {len(beams.codes)} beams"
        if not (np.isfinite(beams.logprobs).all() and (beams.logprobs <= 1e-3).all()):
            return "has values that are no log-probabilities"
        if (np.diff(beams.logprobs) > 0).any():
            return "is not sorted"
        inside = (beams.first_row >= 0) & (beams.end_row > beams.first_row)
        if not (inside & (beams.end_row <= manifest.num_items)).all():
            return "names rows outside the catalogue"
        if (self._bundle.semantic_ids[beams.first_row] != beams.codes).any():
            return "holds a semantic ID that no item has"
        return ""
