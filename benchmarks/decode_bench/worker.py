"""One engine in a process of its own, driven over a pipe, so that engines can take turns.

Turns matter: whatever else the machine does hits every engine alike, and ratios stay honest. The
clock runs inside the process, around `decode` alone; an engine with `milliseconds` of its own says
those instead.
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

ENGINES = {
    "hf_generate": "torch_engines:HFGenerateBench",
    "vllm_beam": "vllm_engines:VllmBeamBench",
    "vllm_logits": "vllm_engines:VllmLogitsBench",
    "vllm_pooling": "vllm_engines:VllmPoolingBench",
    "torch": "torch_engines:TorchBench",
    "floor": "torch_engines:Floor",
    "trie": "torch_engines:TrieBench",
}


class EngineProcess:
    """Starts a process with one engine; `wait_until_ready` must be called before `run`."""

    def __init__(self, name: str, bundle_dir: Path, dtype: str, max_width: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, name, bundle_dir, dtype, max_width)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Block until the engine is loaded.

        Raises:
            RuntimeError: it could not be, with its reason.
        """
        self._receive()

    def run(
        self, prompts: list[list[int]], width: int, only: dict[str, Any] | None = None
    ) -> tuple[float, list[np.ndarray]]:
        """Decode prompts together.

        Args:
            prompts: token ids, of equal length.
            width: W.
            only: a filter; for the engines that know filters.

        Returns:
            Milliseconds, and SIDs per prompt; a code outside its codebook is no SID. Shapes: (B, L).
        """
        self._pipe.send((prompts, width, only))
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the process of {self.name} ended; its output above says why") from None
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}: {answer}")
        return answer


def _serve(pipe: Connection, name: str, bundle_dir: Path, dtype: str, max_width: int) -> None:
    module, class_name = ENGINES[name].split(":")
    try:
        engine = getattr(importlib.import_module(f"decode_bench.{module}"), class_name)(
            bundle_dir, dtype, max_width
        )
        pipe.send(())
        while True:
            prompts, width, only = pipe.recv()
            start = time.perf_counter()
            answers = engine.decode(prompts, width, only)
            milliseconds = (time.perf_counter() - start) * 1000
            pipe.send((getattr(engine, "milliseconds", milliseconds), answers))
    except EOFError:
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        raise
