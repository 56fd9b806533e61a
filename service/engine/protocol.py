"""What every engine does: token ids in, constrained beams out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from service.decoding.beam_search import Beams

__all__ = ["Beams", "DecodeRequest", "Engine"]


@dataclass(frozen=True)
class DecodeRequest:
    """One recommendation to decode.

    Attributes:
        prompt_token_ids: the whole prompt, at least one token.
        beam_width: W >= 1, beams kept per level and returned at most.
        request_id: unique among requests in flight.
        exclude_rows: item rows that must not be reached, sorted, unique, int64.
        filter: canonical form of a filter that every item reached must pass, None for all items; see
            service/decoding/filter_expression.py.
        num_items: item rows to reach: where fewer beams than that are asked for, more are kept.
        trie_version: the version of the catalogue that `exclude_rows` and `filter` refer to and that
            is to be decoded with; None for the newest.
    """

    prompt_token_ids: Sequence[int]
    beam_width: int
    request_id: str
    exclude_rows: np.ndarray | None = field(default=None, compare=False)
    filter: str | None = None
    num_items: int = 0
    trie_version: str | None = None

    @property
    def max_beams(self) -> int:
        """Most beams this request may have in work."""
        return max(self.beam_width, self.num_items)


@runtime_checkable
class Engine(Protocol):
    """A language model with the bundle's trie, answering decode requests.

    Implementations: `vllm_pooling` (default), `vllm_logits`, `torch_engine`. All return the same
    beams in float32.
    """

    name: str

    async def start(self) -> None:
        """Load the model. Raises EngineError with a sentence if it cannot serve this bundle."""
        ...

    async def decode(self, request: DecodeRequest) -> Beams:
        """Beam search under the trie. Cancelling the awaiting task stops the work.

        Raises:
            EngineDead: the engine's process is gone; raised at once, never a hang.
            StaleCatalogue: the request names a version of the catalogue that is not held any more.
        """
        ...

    async def load_catalogue(self, directory: Path) -> None:
        """Exchange the catalogue: requests decoded after this call use the new one.

        The exchange happens between two decodes. Replies name the version they were decoded with, and
        the few versions before stay answerable for requests that name them. Nothing is hidden in the
        new one until `hide_rows` says so.

        Args:
            directory: what `service.decoding.search_space.write_catalogue` made; memory-mapped, so it
                must stay as it is while the engine may use it.

        Raises:
            BundleError, CatalogueError: it is damaged or of another model; the old one stays in use.
            EngineDead: the engine is not running.
        """
        ...

    async def hide_rows(self, rows: np.ndarray, trie_version: str) -> None:
        """Let no request reach these item rows any more, at once; replaces what was hidden before.

        Args:
            rows: item rows of that version, in any order; empty shows all again. Shape: (H,), int64.
            trie_version: the version they refer to.

        Raises:
            StaleCatalogue: that version is not held.
            EngineDead: the engine is not running.
        """
        ...

    @property
    def is_alive(self) -> bool:
        """Cheap flag; False once the engine's process is known to be gone."""
        ...

    async def close(self) -> None:
        """Release everything, child processes included. Idempotent."""
        ...
