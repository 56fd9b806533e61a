"""Which examples are seen at which step: a function of (seed, step), so that a resume needs no state.

A batch is a random set of examples; so that memory suffices it is sorted by length and cut into
micro-batches whose gradients add up. Padding stands on the right, where a causal model's real
tokens never see it, so no attention mask is needed; `packed` leaves it out of all but attention.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.learning.examples import Examples


@dataclass(frozen=True)
class MicroBatch:
    """Examples of similar length, padded on the right.

    Attributes:
        ids: token ids; padding is token 0. Shape: (b, T), int64.
        is_label: False in the padding and for every first token. Shape: (b, T), bool.
        lengths: real tokens of every example. Shape: (b,), int64.
    """

    ids: torch.Tensor
    is_label: torch.Tensor
    lengths: torch.Tensor

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What the objective is called with."""
        return self.ids, self.is_label, self.lengths

    @property
    def num_labels(self) -> int:
        """Labelled tokens; a step's loss is divided by their number."""
        return int(self.is_label.sum())

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(self.ids.to(device), self.is_label.to(device), self.lengths.to(device))


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed for one purpose, from the run's seed. Range: [0, 2**31)."""
    text = "/".join(str(part) for part in (seed, *names))
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


class Stream:
    """An endless shuffled stream over examples: every epoch is a new permutation.

    Args:
        num_examples: n >= 1.
        seed: decides every permutation.
    """

    def __init__(self, num_examples: int, seed: int) -> None:
        if num_examples < 1:
            raise ValueError("there is no example to train on")
        self._num_examples = num_examples
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def take(self, position: int, count: int) -> np.ndarray:
        """Example indices at stream positions [position, position + count). Shape: (count,), int64."""
        pieces = []
        while count:
            epoch, offset = divmod(position, self._num_examples)
            piece = self._permutation(epoch)[offset : offset + count]
            pieces.append(piece)
            position += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            generator = np.random.default_rng(derive_seed(self._seed, "epoch", epoch))
            self._order = generator.permutation(self._num_examples)
            self._epoch = epoch
        return self._order


class Batches:
    """The batch of every step, mixed from one or more sources in fixed numbers.

    Args:
        sources: examples, and how many of them every batch holds.
        seed: decides the order.
        max_tokens: padded tokens in one micro-batch; a longer single example stands alone.
    """

    def __init__(self, sources: Sequence[tuple[Examples, int]], *, seed: int, max_tokens: int = 4096) -> None:
        self._sources = [(examples, count) for examples, count in sources if count]
        self._streams = [
            Stream(len(examples), derive_seed(seed, "source", number))
            for number, (examples, _) in enumerate(self._sources)
        ]
        self._max_tokens = max_tokens

    def at(self, step: int) -> list[MicroBatch]:
        """Micro-batches of one step, shortest examples first."""
        chosen: list[tuple[np.ndarray, np.ndarray]] = []
        for (examples, count), stream in zip(self._sources, self._streams, strict=True):
            indices = stream.take(step * count, count)
            chosen.extend(examples.example(int(index)) for index in indices)
        return micro_batches(chosen, self._max_tokens)


def micro_batches(chosen: list[tuple[np.ndarray, np.ndarray]], max_tokens: int) -> list[MicroBatch]:
    """Sort by length and cut so that no micro-batch exceeds `max_tokens` padded tokens."""
    chosen = sorted(chosen, key=lambda example: len(example[0]))
    groups: list[list[tuple[np.ndarray, np.ndarray]]] = [[]]
    for example in chosen:
        if groups[-1] and (len(groups[-1]) + 1) * len(example[0]) > max_tokens:
            groups.append([])
        groups[-1].append(example)
    return [_pad(group) for group in groups if group]


def in_order(examples: Examples, max_tokens: int) -> list[MicroBatch]:
    """All examples once, for measuring; sorted by length."""
    return micro_batches([examples.example(index) for index in range(len(examples))], max_tokens)


def _pad(group: list[tuple[np.ndarray, np.ndarray]]) -> MicroBatch:
    longest = max(len(tokens) for tokens, _ in group)
    ids = np.zeros((len(group), longest), dtype=np.int64)
    is_label = np.zeros((len(group), longest), dtype=bool)
    for row, (tokens, labelled) in enumerate(group):
        ids[row, : len(tokens)] = tokens
        is_label[row, : len(tokens)] = labelled
    is_label[:, 0] = False  # nothing stands before the first token
    lengths = torch.as_tensor([len(tokens) for tokens, _ in group])
    return MicroBatch(torch.from_numpy(ids), torch.from_numpy(is_label), lengths)
