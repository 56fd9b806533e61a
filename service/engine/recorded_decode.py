"""Decodes of fixed shapes, recorded once as a CUDA graph and replayed.

At a batch of one a beam step is hundreds of kernels of a few microseconds each, so launching them
costs more than running them. All steps of a decode have shapes that follow from (requests, beams,
prompt tokens, excluded rows), and nothing is read back between levels, so the whole search after the
prompt pass is one graph per shape. Each number is rounded up to a bucket; what is padded is a request
of one token and one beam, or a key that attention never sees.

On a CPU the same code runs without a recording, which is how the tests cover it. On CUDA it has not
run yet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from service.decoding.beam_search import Beams, BeamState, Found, run_levels
from service.decoding.filters import AllowedRows
from service.decoding.prefix_attention import ALIGNMENT
from service.decoding.prefix_decoder import LayerOps, PromptCache, SharedPrefixScorer
from service.decoding.search_space import SearchSpace

MAX_RECORDINGS = 32
MAX_CACHE_BYTES = 8 * 2**30  # of the prompts' keys and values that all recordings hold
Recorder = Callable[[Callable[[], Found]], Callable[[], Found]]


def record_nothing(search: Callable[[], Found]) -> Callable[[], Found]:
    """Run it afresh every time."""
    return search


def record_cuda_graph(search: Callable[[], Found]) -> Callable[[], Found]:
    """Record what a search does on the device; a replay writes into the same tensors."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # lazy initialisations must not be recorded
        for _ in range(2):
            search()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = search()

    def replay() -> Found:
        graph.replay()
        return found

    return replay


@dataclass(frozen=True)
class Shape:
    """What a recording depends on: numbers of requests, beams, prompt tokens and excluded rows, the trie,
    and whether any request is filtered."""

    num_requests: int
    num_beams: int
    num_tokens: int
    num_excluded: int
    trie_version: str
    is_filtered: bool


class _Recording:
    """The inputs of one shape, and the search that reads them."""

    def __init__(
        self,
        shape: Shape,
        like: PromptCache,
        space: SearchSpace,
        sums: torch.Tensor | None,
        search: Callable[[PromptCache, BeamState], Found],
        record: Recorder,
    ) -> None:
        device, num = like.lengths.device, shape.num_requests
        groups, head_dim = like.keys[0].shape[1], like.keys[0].shape[3]
        cache_shape = (num, groups, shape.num_tokens, head_dim)
        self.sums = sums
        self.cache = PromptCache(
            [like.keys[0].new_zeros(cache_shape) for _ in like.keys],
            [like.keys[0].new_zeros(cache_shape) for _ in like.keys],
            torch.ones(num, dtype=torch.long, device=device),
            like.last_hidden.new_zeros(num, like.last_hidden.shape[1]),
        )
        self.num_bytes = 2 * len(self.cache.keys) * self.cache.keys[0].nbytes
        numbers = {"dtype": torch.long, "device": device}
        self.widths = torch.ones(num, 1, **numbers)
        self.wanted = torch.zeros(num, 1, **numbers)
        self.filter_of = torch.full((num, 1), -1, **numbers)
        num_items = space.trie.num_items
        self.excluded = torch.full((num, shape.num_excluded), num_items, **numbers)
        allowed = AllowedRows.of_tensors(
            num_items,
            filter_sums=sums,
            filter_of=self.filter_of if sums is not None else None,
            excluded=self.excluded if shape.num_excluded else None,
        )

        def once() -> Found:
            state = BeamState.of_tensors(
                space.trie, shape.num_beams, widths=self.widths, wanted=self.wanted, allowed=allowed
            )
            return search(self.cache, state)

        self.run = record(once)

    def write(
        self, cache: PromptCache, widths: Sequence[int], wanted: Sequence[int], allowed: AllowedRows
    ) -> None:
        """Put a batch into the inputs; what is left of them becomes padding."""
        num, longest = len(widths), cache.keys[0].shape[2]
        for mine, given in zip(
            [*self.cache.keys, *self.cache.values], [*cache.keys, *cache.values], strict=True
        ):
            mine[:num, :, :longest].copy_(given)
        self.cache.lengths.fill_(1)
        self.cache.lengths[:num].copy_(cache.lengths)
        self.cache.last_hidden[:num].copy_(cache.last_hidden)
        self.excluded.fill_(allowed.num_items)
        if allowed.excluded is not None:
            self.excluded[:num, : allowed.excluded.shape[1]].copy_(allowed.excluded)
        self.filter_of.fill_(-1)
        if allowed.filter_of is not None:
            self.filter_of[:num].copy_(allowed.filter_of)
        for mine, values, padding in ((self.widths, widths, 1), (self.wanted, wanted, 0)):
            mine.fill_(padding)
            mine[:num, 0].copy_(torch.as_tensor(values))


class RecordedDecodes:
    """Runs beam searches through recordings, one per shape.

    Args:
        ops: the transformer.
        levels: (first_token_id, codebook_size) of every level.
        record: `record_cuda_graph`, or `record_nothing` where there is no CUDA.
    """

    def __init__(self, ops: LayerOps, levels: Sequence[tuple[int, int]], record: Recorder) -> None:
        self._ops = ops
        self._levels = levels
        self._record = record
        self._recordings: OrderedDict[Shape, _Recording] = OrderedDict()  # least recently used first

    def forget(self) -> None:
        """Drop all recordings: they keep the catalogue alive that they were made for."""
        self._recordings.clear()

    def decode(
        self,
        cache: PromptCache,
        space: SearchSpace,
        widths: Sequence[int],
        wanted: Sequence[int],
        allowed: AllowedRows,
    ) -> list[Beams]:
        """As `beam_search` over the prompts in `cache`."""
        shape = Shape(
            num_requests=_power_of_two(len(widths)),
            num_beams=_power_of_two(max([*widths, *wanted]), at_least=8),
            num_tokens=_round_up(cache.keys[0].shape[2]),
            num_excluded=_excluded_bucket(allowed),
            trie_version=space.trie.version,
            is_filtered=allowed.filter_of is not None,
        )
        recording = self._recordings.get(shape)
        if recording is None or recording.sums is not allowed.filter_sums:
            recording = _Recording(shape, cache, space, allowed.filter_sums, self._search, self._record)
        self._recordings[shape] = recording
        self._recordings.move_to_end(shape)
        while len(self._recordings) > 1 and (
            len(self._recordings) > MAX_RECORDINGS
            or sum(one.num_bytes for one in self._recordings.values()) > MAX_CACHE_BYTES
        ):
            self._recordings.popitem(last=False)
        recording.write(cache, widths, wanted, allowed)
        return recording.run().beams(space.trie)[: len(widths)]

    def _search(self, cache: PromptCache, state: BeamState) -> Found:
        return run_levels(SharedPrefixScorer(self._ops, self._levels, cache), state)


def _power_of_two(number: int, *, at_least: int = 1) -> int:
    return max(at_least, 1 << (number - 1).bit_length())


def _round_up(num_tokens: int) -> int:
    """Prompt lengths rise by an eighth of a power of two, but at least by the kernel's alignment."""
    step = max(ALIGNMENT, _power_of_two(num_tokens) // 8)
    return -(-num_tokens // step) * step


def _excluded_bucket(allowed: AllowedRows) -> int:
    return 0 if allowed.excluded is None else _power_of_two(allowed.excluded.shape[1], at_least=64)
