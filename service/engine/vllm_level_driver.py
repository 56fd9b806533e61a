"""Beam search over a function that scores all beams of one level, and its words to and from vLLM.

The function is one batch of one-token generate requests, masked by the trie logits processor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from service.bundle import Level
from service.decoding.beam_search import Beams, BeamState
from service.decoding.search_space import SearchSpace
from service.engine.protocol import DecodeRequest
from service.engine.vllm_token_trie import NODE_KEY, TRIE_KEY
from service.errors import EngineError, StaleCatalogue


@dataclass(frozen=True)
class BeamQuery:
    """One beam to score.

    Attributes:
        prompt: token ids of prompt and prefix.
        node: breadth-first number of the prefix's trie node, see vllm_token_trie.py.
        trie_version: the trie that the node is of.
        num_logprobs: how many of the best children to return.
    """

    prompt: list[int]
    node: int
    trie_version: str
    num_logprobs: int


# Best children of a beam: token ids (int64) and log-probabilities (float32), same length.
Scores = tuple[np.ndarray, np.ndarray]
ScoreBeams = Callable[[Sequence[BeamQuery]], Awaitable[Sequence[Scores]]]


class LevelDriver:
    """Beam search over a function that scores all beams of one level.

    Args:
        levels: token ranges of the levels.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        self._levels = levels

    async def decode(self, request: DecodeRequest, space: SearchSpace, score: ScoreBeams) -> Beams:
        """Run one request through all levels.

        Args:
            request: what to decode.
            space: the version of the catalogue to decode it with.
            score: scores all beams of a level.

        Raises:
            EngineError: vLLM returned what is no log-probability, or does not know this version.
        """
        trie = space.trie
        sizes = [1, *(codes.numel() for codes in trie.child_code)]
        first_nodes = np.cumsum([0, *sizes]).tolist()  # number of every depth's first node
        allowed = space.allow([request.exclude_rows], [request.filter])
        state = BeamState(trie, [request.beam_width], allowed, [request.num_items])
        prompt = [int(token) for token in request.prompt_token_ids]
        prefixes: list[list[int]] = [[]]
        while True:
            if state.is_exhausted:
                return Beams.none(trie.num_levels, trie.version)
            nodes = (state.nodes[0] + first_nodes[state.level]).tolist()
            wanted = _num_wanted(state, request.max_beams)
            queries = [
                BeamQuery(prompt + prefix, node, trie.version, count)
                for prefix, node, count in zip(prefixes, nodes, wanted, strict=True)
            ]
            first_token = self._levels[state.level].first_token_id
            state.step(self._dense(await score(queries), state.level))
            if state.is_done:
                (beams,) = state.results()
                return beams
            chosen = zip(state.parents[0].tolist(), state.codes[0].tolist(), strict=True)
            prefixes = [[*prefixes[parent], first_token + code] for parent, code in chosen]

    def _dense(self, scores: Sequence[Scores], level: int) -> torch.Tensor:
        """Scores of all beams as `BeamState.step` wants them. Shape: (1, B, K)."""
        codebook = self._levels[level]
        dense = torch.full((len(scores), codebook.codebook_size), float("-inf"))
        beam = np.repeat(np.arange(len(scores)), [len(tokens) for tokens, _ in scores])
        codes = np.concatenate([tokens for tokens, _ in scores]) - codebook.first_token_id
        logprobs = np.concatenate([logprobs for _, logprobs in scores])
        # Where a node has fewer children than another beam asked for, vLLM fills up with -inf tokens.
        real = ~np.isneginf(logprobs)
        if len(np.unique(beam[real])) < len(scores):
            raise StaleCatalogue("vLLM's worker no longer holds the catalogue of this request; ask again")
        codes, beam = codes[real], beam[real]
        if ((codes < 0) | (codes >= codebook.codebook_size)).any():
            raise EngineError(f"vLLM scored a token that level '{codebook.letter}' does not have")
        dense[torch.from_numpy(beam), torch.from_numpy(codes)] = torch.from_numpy(logprobs[real])
        return dense[None]


def _num_wanted(state: BeamState, max_beams: int) -> list[int]:
    """Children to ask for per beam: no more than W can survive, plus those that are not allowed."""
    starts = state.trie.child_start[state.level]
    fan_outs = (starts[state.nodes[0] + 1] - starts[state.nodes[0]]).long()
    _, counts = state.children()
    num_allowed = (counts[0] > 0).sum(-1)
    return (fan_outs - num_allowed + max_beams).minimum(fan_outs).tolist()


def sampling_params(query: BeamQuery) -> Any:
    """One greedy token, with the log-probabilities of the best children."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprobs=query.num_logprobs,
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        extra_args={NODE_KEY: query.node, TRIE_KEY: query.trie_version},
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def read_scores(output: Any) -> Scores:
    """Token ids and log-probabilities of a finished one-token request."""
    flat = output.outputs[0].logprobs
    start, end = flat.start_indices[0], flat.end_indices[0]
    return (
        np.asarray(flat.token_ids[start:end], dtype=np.int64),
        np.asarray(flat.logprobs[start:end], dtype=np.float32),
    )
