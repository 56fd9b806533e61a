"""One decode request of the service's own, to see that an engine really answers for this catalogue."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import torch

from service.bundle import Bundle
from service.decoding.search_space import SearchSpace
from service.decoding.trie import Trie
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
        self._prompt = manifest.prompt.token_ids(manifest.tokens_of(codes))
        self._bundle = bundle
        self._opened: tuple[Path, Trie] | None = None

    async def __call__(self, engine: Engine, catalogue: Path | None = None) -> None:
        """Run it once.

        Args:
            engine: what to test.
            catalogue: directory of the catalogue that it should decode with; None: the bundle's.

        Raises:
            EngineError: the answer is empty, unsorted, not of this catalogue, or no log-probability.
        """
        trie = self._trie(catalogue or self._bundle.path)
        request_id = f"canary-{uuid.uuid4().hex}"
        beams = await engine.decode(
            DecodeRequest(self._prompt, BEAM_WIDTH, request_id, trie_version=trie.version)
        )
        if problem := _problem(beams, trie):
            raise EngineError(f"the engine's test answer {problem}; it does not fit this catalogue")

    def _trie(self, directory: Path) -> Trie:
        if self._opened is None or self._opened[0] != directory:
            self._opened = (directory, SearchSpace.open(directory).trie)
        return self._opened[1]


def _problem(beams: Beams, trie: Trie) -> str:
    if beams.trie_version != trie.version:
        return f"comes from trie {beams.trie_version}, not {trie.version}"
    if not 1 <= len(beams.codes) <= BEAM_WIDTH:
        return f"has {len(beams.codes)} beams"
    if not (np.isfinite(beams.logprobs).all() and (beams.logprobs <= 1e-3).all()):
        return "has values that are no log-probabilities"
    if (np.diff(beams.logprobs) > 0).any():
        return "is not sorted"
    inside = (beams.first_row >= 0) & (beams.end_row > beams.first_row)
    if not (inside & (beams.end_row <= trie.num_items)).all():
        return "names rows outside the catalogue"
    leaves = np.searchsorted(trie.row_start[-1].numpy(), beams.first_row, side="right") - 1
    if (trie.sids_of(torch.from_numpy(leaves)).numpy() != beams.codes).any():
        return "holds a semantic ID that no item has"
    return ""
