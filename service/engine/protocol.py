"""What every engine does: token ids in, constrained beams out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
        exclude_rows: item rows (order of the bundle) that must not be reached, sorted, unique, int64.
    """

    prompt_token_ids: Sequence[int]
    beam_width: int
    request_id: str
    exclude_rows: np.ndarray | None = field(default=None, compare=False)


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
        """
        ...

    @property
    def is_alive(self) -> bool:
        """Cheap flag; False once the engine's process is known to be gone."""
        ...

    async def close(self) -> None:
        """Release everything, child processes included. Idempotent."""
        ...
