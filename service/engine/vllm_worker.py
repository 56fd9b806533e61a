"""What the service can ask of vLLM's worker between two steps: exchange the catalogue, hide rows.

vLLM mixes this class into its own worker (`worker_extension_cls`) and runs a method of it when
`collective_rpc` names it. Arguments and results are plain strings and bytes; an exception would end
vLLM's engine, so a problem comes back as a sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from service.errors import GtirecError

logger = logging.getLogger(__name__)


class HoldsCatalogue(Protocol):
    """A part of the worker that decodes by a trie: the pooler, or the trie logits processor."""

    def load_catalogue(self, directory: Path) -> None: ...

    def hide_rows(self, rows: np.ndarray, trie_version: str) -> None: ...


class CatalogueWorker:
    """Added to vLLM's worker class; its methods are prefixed, because vLLM refuses a name twice."""

    model_runner: Any

    def gtirec_load_catalogue(self, directory: str) -> str:
        """Returns an empty string, or why the old catalogue stays in use."""
        try:
            for part in _parts(self.model_runner):
                part.load_catalogue(Path(directory))
        except Exception as error:
            return _sentence(error)
        return ""

    def gtirec_hide_rows(self, rows: bytes, trie_version: str) -> str:
        """Rows as little-endian int64. Returns an empty string, or why nothing changed."""
        try:
            for part in _parts(self.model_runner):
                part.hide_rows(np.frombuffer(rows, dtype="<i8").astype(np.int64), trie_version)
        except Exception as error:
            return _sentence(error)
        return ""


def _parts(model_runner: Any) -> Iterator[HoldsCatalogue]:
    pooler: Any = getattr(model_runner.get_model(), "pooler", None)
    if hasattr(pooler, "load_catalogue"):
        yield pooler
        return
    if hasattr(model_runner, "input_batch"):  # vLLM 0.32.0: the V1 runner, else V2
        processors = model_runner.input_batch.logitsprocs.all
    else:
        processors = model_runner.sampler.logits_processors
    yield from (processor for processor in processors if hasattr(processor, "load_catalogue"))


def _sentence(error: Exception) -> str:
    if not isinstance(error, GtirecError | ValueError):
        logger.exception("the catalogue could not be changed")
        return f"vLLM's worker failed on it ({type(error).__name__}: {error})"
    return str(error)
