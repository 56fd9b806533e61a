"""Which engine serves: by name, or the best one that this machine can run."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from service.bundle import Bundle
from service.decoding.filters import DEFAULT_CACHE_BYTES
from service.engine.protocol import Engine
from service.errors import EngineError

EngineName = Literal["vllm_pooling", "vllm_logits", "torch"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineOptions:
    """How to run the model; see the settings of the same names.

    Attributes:
        dtype: "float32", "bfloat16", "float16", or "auto".
        max_beam_rows: most beams decoded at once; more are decoded one group after another.
        filter_cache_bytes: memory for prefix sums of filters, 4 bytes per item each.
    """

    dtype: str = "auto"
    max_beam_rows: int = 1024
    filter_cache_bytes: int = DEFAULT_CACHE_BYTES
    gpu_memory_utilization: float = 0.6
    cpu_kv_cache_gib: float = 1.0


def choose_engine(choice: str) -> EngineName:
    """The engine that will run.

    Args:
        choice: a name, or "auto": vllm_pooling where vLLM can be imported, else torch.

    Raises:
        EngineError: vLLM was asked for by name but cannot be imported here.
    """
    if choice == "torch":
        return "torch"
    problem = _why_no_vllm()
    if choice == "auto":
        if problem:
            log.info("serving with the torch engine, because %s", problem)
            return "torch"
        return "vllm_pooling"
    if problem:
        raise EngineError(
            f"GTIREC_ENGINE={choice} needs vLLM, but {problem}; install it or use GTIREC_ENGINE=torch"
        )
    return "vllm_logits" if choice == "vllm_logits" else "vllm_pooling"


def engine_factory(name: EngineName, bundle: Bundle, options: EngineOptions) -> Callable[[], Engine]:
    """A function that makes a fresh, unstarted engine. Heavy imports happen when it is called."""

    def make() -> Engine:
        if name == "torch":
            return _torch_engine(bundle, options)
        return _vllm_engine(name, bundle, options)

    return make


def _torch_engine(bundle: Bundle, options: EngineOptions) -> Engine:
    import torch

    from service.engine.torch_engine import TorchEngine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    return TorchEngine(
        bundle,
        dtype=dtype,
        device=device,
        max_beam_rows=options.max_beam_rows,
        filter_cache_bytes=options.filter_cache_bytes,
    )


def _vllm_engine(name: EngineName, bundle: Bundle, options: EngineOptions) -> Engine:
    from service.engine.vllm_options import VllmOptions

    module = importlib.import_module(f"service.engine.{name}")
    engine_class = module.VllmPoolingEngine if name == "vllm_pooling" else module.VllmLogitsEngine
    vllm_options = VllmOptions(
        dtype=options.dtype,
        max_beam_rows=options.max_beam_rows,
        filter_cache_bytes=options.filter_cache_bytes,
        gpu_memory_utilization=options.gpu_memory_utilization,
        cpu_kv_cache_gib=options.cpu_kv_cache_gib,
    )
    return engine_class(bundle, vllm_options)


def _why_no_vllm() -> str:
    """Empty if the right vLLM can be imported, else half a sentence."""
    from service.engine.vllm_version import SUPPORTED_VLLM, prepare_environment

    prepare_environment(compile=True)  # before the import; the engine itself decides about compiling
    try:
        version = importlib.import_module("vllm").__version__
    except ModuleNotFoundError:
        return "vLLM is not installed"
    except Exception as error:  # a wheel that does not fit the machine fails in many ways
        return f"vLLM cannot be imported here ({type(error).__name__}: {error})"
    if not version.startswith(f"{SUPPORTED_VLLM}."):
        return f"vLLM {version} is installed where {SUPPORTED_VLLM}.x is needed"
    return ""
