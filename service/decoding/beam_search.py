"""Beam search under the trie, vectorised over requests and beams.

Scores are sums of the model's log-probabilities over its FULL vocabulary; the trie masks after.
(Renormalising over the allowed children gives another ranking.) Requests of different widths, filters
and exclusions share a batch. A node without an allowed item is never kept, and every kept node has at
least one, so a request ends with at least min(width, allowed SIDs) beams.

A request that wants more items than it has beams is widened: at every level as many of the best nodes
are kept as it takes to reach that many allowed items (item rows, not SIDs). The counts are known before
a level is run, so nothing is ever run twice, and where they exist the items are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from service.decoding.filters import AllowedRows
from service.decoding.trie import Trie
from service.errors import EngineError

DEAD = float("-inf")


@dataclass(frozen=True)
class Beams:
    """The best semantic IDs of one request, best first; every one belongs to at least one item.

    Attributes:
        codes: Shape: (B, L), int64. B is the beam width; less where no more SIDs are allowed, more
            where the request was widened to reach the items it wants.
        logprobs: natural-log probability of the SID given the prompt: the sum over levels of the
            model's log-softmax over its FULL vocabulary. Shape: (B,), float32.
        first_row, end_row: the item rows that carry the SID, [first_row, end_row).
            Shape: (B,), int64.
        trie_version: which trie the rows refer to.
    """

    codes: np.ndarray
    logprobs: np.ndarray
    first_row: np.ndarray
    end_row: np.ndarray
    trie_version: str

    @classmethod
    def none(cls, num_levels: int, trie_version: str) -> Beams:
        """No beam at all: nothing is allowed."""
        rows = np.empty(0, dtype=np.int64)
        codes = np.empty((0, num_levels), dtype=np.int64)
        return cls(codes, np.empty(0, dtype=np.float32), rows, rows, trie_version)


class Scorer(Protocol):
    """The language model as the beam search sees it: log-probabilities of the next level's codes."""

    def first(self) -> torch.Tensor:
        """Level 0 of every request. Shape: (R, 1, K_0), float32."""
        ...

    def advance(self, parents: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        """Append one code to every beam and score the next level.

        Args:
            parents: which beam of the step before each beam extends. Shape: (R, B), int64.
            codes: the code of `level` that each beam ends with. Shape: (R, B), int64.
            level: level of `codes`, 0-based.

        Returns:
            Log-probabilities of level + 1. Shape: (R, B, K_{level+1}), float32.
        """
        ...


class BeamState:
    """Beams of R requests between two steps.

    Args:
        trie: the trie, on the device of the scores.
        widths: beam width per request, each >= 1.
        allowed: rows that may be reached; None for all.
        wanted: item rows to reach per request, where the width alone may not; None for no such wish.
        is_static: every step has the same shapes whatever the scores, and nothing is read back from
            the device before `results`; None: on an accelerator only.

    Attributes:
        level: levels done so far, 0..L.
        parents, codes: of the last step. Shape: (R, B), int64.
        nodes: trie nodes at depth `level`. Shape: (R, B), int64.
        logprobs: scores, descending; -inf marks a dead beam. Shape: (R, B), float32.
    """

    def __init__(
        self,
        trie: Trie,
        widths: Sequence[int],
        allowed: AllowedRows | None = None,
        wanted: Sequence[int] | None = None,
        *,
        is_static: bool | None = None,
    ) -> None:
        if not widths or min(widths) < 1:
            raise ValueError(f"every beam width must be at least 1, got {list(widths)}")
        device = trie.child_start[0].device
        num_requests = len(widths)
        self.trie = trie
        self.level = 0
        self.max_width = max([*widths, *(wanted or ())])
        self.parents = torch.zeros(num_requests, 1, dtype=torch.long, device=device)
        self.codes = torch.zeros(num_requests, 1, dtype=torch.long, device=device)
        self.nodes = torch.zeros(num_requests, 1, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(num_requests, 1, device=device)
        is_uniform = len(set(widths)) == 1 and self.max_width == widths[0]
        self._widths = None if is_uniform else torch.as_tensor(widths, device=device)[:, None]
        self._wanted: torch.Tensor | None = None
        if wanted is not None and any(n > width for n, width in zip(wanted, widths, strict=True)):
            self._wanted = torch.as_tensor(wanted, device=device)[:, None]
        self._allowed = None if allowed is None or allowed.is_everything else allowed
        self._trail = torch.zeros(num_requests, 1, 0, dtype=torch.long, device=device)
        self._exact = device.type == "cpu" if is_static is None else not is_static

    @classmethod
    def of_tensors(
        cls,
        trie: Trie,
        max_width: int,
        *,
        widths: torch.Tensor,
        wanted: torch.Tensor,
        allowed: AllowedRows,
    ) -> BeamState:
        """A static state whose widths and wanted items (shape (R, 1), int64) lie on the device already, so
        that their contents may change between two replays of a recording; see `RecordedDecodes`."""
        state = cls(trie, [max_width] * len(widths), allowed, is_static=True)
        state._widths, state._wanted = widths, wanted
        return state

    @property
    def is_done(self) -> bool:
        """True after the last level."""
        return self.level == self.trie.num_levels

    @property
    def is_exhausted(self) -> bool:
        """True if no request has a live beam; reads the device."""
        return not bool((self.logprobs > DEAD).any())

    def step(self, logprobs: torch.Tensor) -> None:
        """Choose the best continuations.

        Args:
            logprobs: true log-probabilities of this level's codes for the current beams.
                Shape: (R, B, K), float32.
        """
        children, counts = self.children()
        codes = self.trie.child_code[self.level][children].long()
        scores = logprobs.gather(2, codes).add_(self.logprobs[..., None])
        scores = scores.masked_fill_(counts == 0, DEAD).flatten(1)
        num_kept = min(self.max_width, scores.shape[1])
        self.logprobs, choice = scores.topk(num_kept, dim=1)
        if self._widths is not None:
            is_kept = torch.arange(num_kept, device=scores.device) < self._widths
            if self._wanted is not None:
                items = counts.flatten(1).gather(1, choice)
                is_kept = is_kept | (items.cumsum(1) - items < self._wanted)
            self.logprobs = self.logprobs.masked_fill(~is_kept, DEAD)
        if self._exact:
            # NaN sorts first and is not DEAD, so damaged scores live on and are found at the end.
            num_alive = max(1, int((self.logprobs != DEAD).sum(1).max()))
            if num_alive < num_kept:
                self.logprobs, choice = self.logprobs[:, :num_alive], choice[:, :num_alive]
        fan_out = children.shape[2]
        self.parents = choice // fan_out
        self.nodes = children.flatten(1).gather(1, choice)
        self.codes = codes.flatten(1).gather(1, choice)
        trail = self._trail.gather(1, self.parents[..., None].expand(-1, -1, self.level))
        self._trail = torch.cat([trail, self.codes[..., None]], dim=-1)
        self.level += 1

    def children(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Children of every beam and the allowed item rows under each, 0 where there is no such child.

        Returns:
            Nodes at depth `level` + 1, int64, and counts, int64; where nothing is filtered or wanted the
            counts only say whether there is such a child, bool. Shapes: (R, B, fan-out).
        """
        starts = self.trie.child_start[self.level]
        first = starts[self.nodes].long()
        fan_outs = starts[self.nodes + 1].long() - first
        fan_out = int(fan_outs.max()) if self._exact else self.trie.max_children[self.level]
        offsets = torch.arange(fan_out + 1, device=first.device)
        # Siblings cover adjoining rows: one bound more than children gives all counts.
        bounds = first[..., None] + offsets.minimum(fan_outs[..., None])
        children = bounds[..., :-1].clamp(max=self.trie.child_code[self.level].numel() - 1)
        if self._allowed is None and self._wanted is None:
            return children, offsets[:-1] < fan_outs[..., None]
        rows = self.trie.row_start[self.level][bounds].long()
        if self._allowed is not None:
            rows = self._allowed.before(rows.flatten(1)).view_as(rows)
        return children, rows.diff(dim=-1)

    def found(self) -> Found:
        """The finished beams, on the device."""
        assert self.is_done, "results are asked for before the last level"
        return Found(self.nodes, self._trail, self.logprobs.float())

    def results(self) -> list[Beams]:
        """The finished beams of every request, best first.

        Raises:
            EngineError: if the model's scores are not numbers.
        """
        return self.found().beams(self.trie)


@dataclass(frozen=True)
class Found:
    """The end of a search, still on the device.

    Attributes:
        nodes: leaves. Shape: (R, B), int64.
        codes: Shape: (R, B, L), int64.
        logprobs: descending, -inf for dead beams. Shape: (R, B), float32.
    """

    nodes: torch.Tensor
    codes: torch.Tensor
    logprobs: torch.Tensor

    def beams(self, trie: Trie) -> list[Beams]:
        """Read back, one `Beams` per request.

        Raises:
            EngineError: if the model's scores are not numbers.
        """
        rows = trie.row_start[-1]
        first = rows[self.nodes].long().cpu().numpy()
        end = rows[self.nodes + 1].long().cpu().numpy()
        logprobs, codes = self.logprobs.cpu().numpy(), self.codes.cpu().numpy()
        if np.isnan(logprobs).any():
            raise EngineError("the model's log-probabilities are not numbers; its weights are damaged")
        return [
            Beams(codes[r][k], logprobs[r][k], first[r][k], end[r][k], trie.version)
            for r, k in enumerate(logprobs > DEAD)
        ]


def beam_search(scorer: Scorer, state: BeamState) -> list[Beams]:
    """Run a scorer through all levels of a fresh state."""
    return run_levels(scorer, state).beams(state.trie)


def run_levels(scorer: Scorer, state: BeamState) -> Found:
    """The same without reading anything back from the device (if the state is static)."""
    logprobs = scorer.first()
    while True:
        state.step(logprobs)
        if state.is_done:
            return state.found()
        logprobs = scorer.advance(state.parents, state.codes, state.level - 1)
