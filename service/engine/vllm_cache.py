"""Reads the keys and values of finished prompts out of vLLM.

vLLM 0.32 gives every attention layer a cache of shape (blocks, G, block size, 2 * d), but what
stands where inside one block of one head differs by CPU and kernel: on x86 without AMX the keys
are transposed, AMX packs pairs, a GPU keeps them plain. So the layout is not assumed but measured:
numbered keys and values are written through vLLM's own kernel into an empty block, and every
number is looked up. Where that gives no clean permutation the layout is unknown, and `StashReader`
catches keys and values on their way into the cache instead.

Shapes: R requests, G key/value heads, d head width, S tokens of a block, T padded prompt tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from service.engine.vllm_messages import UnknownCacheLayout
from service.errors import EngineError

KeysAndValues = tuple[list[torch.Tensor], list[torch.Tensor]]
_BASE = 128  # digits below this are exact in every float type


class PromptReader(Protocol):
    """Access to the prompts of the step that vLLM has just run."""

    def observe(self, attention_metadata: Any) -> None:
        """Called before each forward pass; None while vLLM profiles itself."""
        ...

    @property
    def has_step(self) -> bool:
        """False while vLLM profiles itself: there is no cache to read."""
        ...

    def read(self, rows: Sequence[int], first_tokens: Sequence[int], lengths: Sequence[int]) -> KeysAndValues:
        """Keys and values of whole prompts, one tensor per layer.

        Args:
            rows: positions of the requests in this step's batch.
            first_tokens: where each one's tokens of this step start in the packed batch.
            lengths: prompt tokens of each.

        Returns:
            Zero beyond a prompt's length. Shape: (R, G, T, d).
        """
        ...


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """Where the elements of one head lie in one block of S * 2 * d numbers.

    Attributes:
        key_offsets, value_offsets: offset of (token, channel). Shape: (S, d), int64.
    """

    key_offsets: torch.Tensor
    value_offsets: torch.Tensor


def measure_layout(attention: Any) -> BlockLayout:
    """Find a layer's layout by writing numbered elements through vLLM's kernel.

    Args:
        attention: a vLLM `Attention` layer whose cache is bound.

    Raises:
        UnknownCacheLayout: the numbers do not come back as one permutation, the same for all heads.
    """
    cache = attention.kv_cache
    num_heads, head_dim = attention.num_kv_heads, attention.head_size
    if cache.dim() != 4 or cache.shape[1] != num_heads or cache.shape[3] != 2 * head_dim:
        raise UnknownCacheLayout(f"vLLM's cache has shape {tuple(cache.shape)}, which is not known here")
    block_size = cache.shape[2]
    count = 2 * block_size * head_dim
    numbers = torch.arange(count, device=cache.device)
    found = torch.zeros(num_heads, count, dtype=torch.long, device=cache.device)
    place = 1
    while place < count:
        digits = (numbers // place % _BASE).to(cache.dtype)
        block = torch.zeros_like(cache[:1])
        key, value = (half.expand(-1, num_heads, -1).contiguous() for half in _halves(digits, block_size))
        slots = torch.arange(block_size, device=cache.device)
        try:
            attention.impl.do_kv_cache_update(attention, key, value, block, slots)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
            raise UnknownCacheLayout(f"vLLM's cache cannot be written to for a test ({error})") from error
        found += block.reshape(num_heads, count).long() * place
        place *= _BASE
    ordered, offsets = found.sort(dim=-1)
    if not (torch.equal(ordered, numbers.expand_as(ordered)) and bool((offsets == offsets[0]).all())):
        raise UnknownCacheLayout("vLLM's cache on this machine does not keep keys and values unchanged")
    key_offsets, value_offsets = _halves(offsets[0], block_size)
    return BlockLayout(key_offsets[:, 0], value_offsets[:, 0])


def _halves(numbers: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value halves. Shape: (2 * S * d,) -> twice (S, 1, d)."""
    key, value = numbers.view(2, block_size, 1, -1)
    return key, value


class PagedReader:
    """Reads vLLM's paged cache, so prefix caching, chunked prefill and torch.compile all work.

    Args:
        attentions: the `Attention` layer of every decoder layer.
    """

    def __init__(self, attentions: Sequence[nn.Module]) -> None:
        self._attentions: list[Any] = list(attentions)
        self._metadata: Mapping[str, Any] | None = None
        self._layout: BlockLayout | None = None

    @property
    def has_step(self) -> bool:
        return self._metadata is not None

    def observe(self, attention_metadata: Any) -> None:
        self._metadata = attention_metadata or None

    def read(self, rows: Sequence[int], first_tokens: Sequence[int], lengths: Sequence[int]) -> KeysAndValues:
        assert self._metadata is not None
        if self._layout is None:
            self._layout = measure_layout(self._attentions[0])
        longest = max(lengths)
        keys, values = [], []
        for attention in self._attentions:
            cache: torch.Tensor = attention.kv_cache
            table: torch.Tensor = self._metadata[attention.layer_name].block_table
            picked = torch.as_tensor(list(rows), device=table.device)
            blocks = table[picked, : -(-longest // cache.shape[2])].long()
            padding = _padding(lengths, longest, cache.device)
            for offsets, found in ((self._layout.key_offsets, keys), (self._layout.value_offsets, values)):
                part = _take(cache, blocks, offsets)[:, :, :longest]
                found.append(part if padding is None else part.masked_fill(padding, 0))
        return keys, values


def _take(cache: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Elements at `offsets` of some blocks. Shape: (R, n), (S, d) -> (R, G, n * S, d)."""
    num_requests, num_blocks = blocks.shape
    block_size, head_dim = offsets.shape
    num_heads = cache.shape[1]
    steps = _steps(offsets)
    if steps is not None and cache[0, 0].is_contiguous():
        start, token_step, channel_step = steps
        shape = (cache.shape[0], num_heads, block_size, head_dim)
        strides = (cache.stride(0), cache.stride(1), token_step, channel_step)
        chosen = cache.as_strided(shape, strides, cache.storage_offset() + start)[blocks]
    else:
        chosen = cache[blocks].flatten(3)[..., offsets.flatten()]
    chosen = chosen.view(num_requests, num_blocks, num_heads, block_size, head_dim)
    # contiguous: indexing keeps the order of a transposed cache, which fused attention misreads.
    return chosen.transpose(1, 2).reshape(num_requests, num_heads, -1, head_dim).contiguous()


def _steps(offsets: torch.Tensor) -> tuple[int, int, int] | None:
    """(start, step per token, step per channel) if the offsets are that regular, else None."""
    start = int(offsets[0, 0])
    token_step, channel_step = int(offsets[1, 0]) - start, int(offsets[0, 1]) - start
    tokens, channels = (torch.arange(size, device=offsets.device) for size in offsets.shape)
    regular = start + tokens[:, None] * token_step + channels * channel_step
    is_regular = min(token_step, channel_step) > 0 and torch.equal(regular, offsets)
    return (start, token_step, channel_step) if is_regular else None


def _padding(lengths: Sequence[int], longest: int, device: torch.device) -> torch.Tensor | None:
    """True beyond each prompt's end, None if there is no such place. Shape: (R, 1, T, 1)."""
    if all(length == longest for length in lengths):
        return None
    at = torch.arange(longest, device=device)
    return (at >= torch.as_tensor(list(lengths), device=device)[:, None])[:, None, :, None]


class StashReader:
    """Keeps the keys and values of the current step as they enter vLLM's attention layers.

    Knows nothing of the cache's layout, but needs every prompt whole in one eager step: prefix
    caching and chunked prefill off.

    Args:
        attentions: the `Attention` layer of every decoder layer.
    """

    def __init__(self, attentions: Sequence[nn.Module]) -> None:
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._shape: list[tuple[int, int]] = []
        self._has_step = False
        for attention in attentions:
            self._shape.append((attention.num_kv_heads, attention.head_size))  # type: ignore[arg-type]
            attention.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._kept.append((inputs[1], inputs[2]))

    @property
    def has_step(self) -> bool:
        return self._has_step

    def observe(self, attention_metadata: Any) -> None:
        self._kept.clear()
        self._has_step = attention_metadata is not None

    def read(self, rows: Sequence[int], first_tokens: Sequence[int], lengths: Sequence[int]) -> KeysAndValues:
        if len(self._kept) != len(self._shape):
            raise EngineError("the prompt pass did not run through Python; cache_reader='stash' needs eager")
        keys, values = [], []
        for stashed, (num_heads, head_dim) in zip(self._kept, self._shape, strict=True):
            for packed, found in zip(stashed, (keys, values), strict=True):
                padded = packed.new_zeros(len(rows), num_heads, max(lengths), head_dim)
                for request, (first, length) in enumerate(zip(first_tokens, lengths, strict=True)):
                    tokens = packed[first : first + length].view(length, num_heads, head_dim)
                    padded[request, :, :length] = tokens.transpose(0, 1)
                found.append(padded)
        return keys, values
