"""Options of the vLLM engines, and what travels from the service to vLLM's worker process.

The worker gets paths and numbers in vLLM's `additional_config` and opens the bundle itself, so
nothing is pickled and a trie of millions of items is memory-mapped, not sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.bundle import Bundle, Level, Manifest
from service.bundle.manifest import MANIFEST_NAME
from service.decoding.filters import DEFAULT_CACHE_BYTES
from service.decoding.search_space import SearchSpace, SearchSpaces
from service.errors import BundleError, EngineError

CONFIG_KEY = "gtirec"
DTYPES = ("auto", "bfloat16", "float16", "float32")
CACHE_READERS = ("paged", "stash")


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """How vLLM is run. The defaults fit a machine without a GPU.

    Attributes:
        dtype: weights and cache. "auto": float32 on a CPU, where it reproduces the torch engine,
            and bfloat16, which is faster, on a GPU.
        cpu_kv_cache_gib: memory for keys and values on a CPU, in GiB.
        max_num_seqs: requests (`vllm_pooling`) or beams (`vllm_logits`) run in one step.
            None: 16 and 256. Smaller bounds how long one step can block the next.
        max_num_batched_tokens: prompt tokens read in one step; None: 2,048, or the longest prompt.
        max_beam_rows: beams in work at once; more wait in the service, so that no step of vLLM decodes
            more than these.
        filter_cache_bytes: memory for prefix sums of filters, 4 bytes per item each.
        max_cache_bytes: prompt keys and values gathered for one such group.
        block_size: tokens of one cache block, a multiple of 32. Small blocks let `vllm_logits`
            reuse more of the prompt (128, vLLM's CPU default, was 5.5 times slower there).
        compile: torch.compile the prompt pass; about a minute at the first start, then faster
            requests.
        threads: OpenMP threads of the worker; None takes every usable CPU.
        gpu_memory_utilization: share of a GPU's memory vLLM may take, in (0, 1].
        tensor_parallel_size: GPUs the model is spread over; more than one needs `vllm_logits`.
        cache_reader: how `vllm_pooling` reads the prompt's keys and values: "paged" from vLLM's
            cache, "stash" from the prompt pass (no prefix cache, no chunked prefill). The engine
            falls back to "stash" by itself where the cache's layout is unknown.
        stats: publish vLLM's own metrics (`vllm:*`) in this process's Prometheus registry.
        shutdown_timeout_s: seconds vLLM's processes get to end before they are killed.
    """

    dtype: str = "auto"
    cpu_kv_cache_gib: float = 1.0
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_beam_rows: int = 1024
    filter_cache_bytes: int = DEFAULT_CACHE_BYTES
    max_cache_bytes: int = 512 * 2**20
    block_size: int = 32
    compile: bool = False
    threads: int | None = None
    gpu_memory_utilization: float = 0.85
    tensor_parallel_size: int = 1
    cache_reader: str = "paged"
    stats: bool = False
    shutdown_timeout_s: float = 8.0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.cache_reader not in CACHE_READERS:
            raise ValueError(f"cache_reader must be one of {', '.join(CACHE_READERS)}")
        if self.block_size < 32 or self.block_size % 32:
            raise ValueError(f"block_size must be a multiple of 32, got {self.block_size}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization must lie in (0, 1], got {self.gpu_memory_utilization}")
        positive = ("cpu_kv_cache_gib", "max_num_seqs", "max_num_batched_tokens", "max_beam_rows", "threads")
        for name in (
            *positive,
            "max_cache_bytes",
            "filter_cache_bytes",
            "tensor_parallel_size",
            "shutdown_timeout_s",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class WorkerSettings:
    """What the code inside vLLM's worker must know; a JSON object inside `additional_config`.

    Attributes:
        bundle: the bundle's directory.
        bundle_id: refuses a directory whose contents were exchanged meanwhile.
        max_beam_rows, max_cache_bytes, filter_cache_bytes, cache_reader: see `VllmOptions`.
    """

    bundle: str
    bundle_id: str
    max_beam_rows: int
    max_cache_bytes: int
    filter_cache_bytes: int
    cache_reader: str

    @classmethod
    def of(cls, bundle: Bundle, options: VllmOptions) -> WorkerSettings:
        """The settings for a bundle served with some options."""
        return cls(
            bundle=str(bundle.path.resolve()),
            bundle_id=bundle.bundle_id,
            max_beam_rows=options.max_beam_rows,
            max_cache_bytes=options.max_cache_bytes,
            filter_cache_bytes=options.filter_cache_bytes,
            cache_reader=options.cache_reader,
        )

    def to_config(self) -> dict[str, Any]:
        """For vLLM's `additional_config`."""
        return {CONFIG_KEY: asdict(self)}

    @classmethod
    def from_config(cls, additional_config: Any) -> WorkerSettings:
        """Read back what `to_config` wrote.

        Raises:
            EngineError: vLLM was started without it.
        """
        section = additional_config.get(CONFIG_KEY) if isinstance(additional_config, Mapping) else None
        if not isinstance(section, Mapping):
            raise EngineError(
                f"vLLM was started without additional_config[{CONFIG_KEY!r}], so the bundle is unknown here"
            )
        try:
            return cls(**section)
        except TypeError as error:
            raise EngineError(f"additional_config[{CONFIG_KEY!r}] is of another release ({error})") from error

    def open_catalogue(self, device: Any = "cpu") -> tuple[SearchSpaces, tuple[Level, ...]]:
        """Memory-map the bundle's trie and read its levels, without touching the items.

        Args:
            device: where the trie is to lie.

        Raises:
            BundleError: the directory no longer holds the bundle the service opened.
        """
        directory = Path(self.bundle)
        try:
            manifest = Manifest.model_validate_json((directory / MANIFEST_NAME).read_bytes())
        except (OSError, ValueError) as error:
            raise BundleError(f"the bundle in {directory} cannot be read ({error})") from error
        if manifest.bundle_id() != self.bundle_id:
            raise BundleError(
                f"{directory} holds bundle {manifest.bundle_id()}, but the service opened {self.bundle_id}; "
                "restart the service"
            )
        return SearchSpaces(self.open(directory, device)), manifest.levels

    def open(self, directory: Path, device: Any = "cpu") -> SearchSpace:
        """Memory-map a catalogue directory."""
        return SearchSpace.open(directory, device=device, filter_cache_bytes=self.filter_cache_bytes)


def model_config(bundle: Bundle) -> dict[str, Any]:
    """The model's `config.json`."""
    return json.loads((bundle.model_dir / "config.json").read_text(encoding="utf-8"))
