"""What crosses the border to vLLM's worker: a request's extras, and the reply.

vLLM carries a pooling request's parameters as msgpack and its reply as one tensor, so both are
spelled in plain numbers. Float64 holds every code, item row (< 2^31) and log-probability exactly.

A reply with beams has one header row [version high, version low, 0...] and one row
[code_0 .. code_{L-1}, first_row, end_row, logprob] per beam. Shape: (1 + B, L + 3), float64.
A refusal is one dimension: [kind, UTF-8 bytes of a sentence...].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from service.bundle import Bundle
from service.decoding.beam_search import Beams
from service.engine.protocol import DecodeRequest
from service.errors import EngineError, RequestError, StaleCatalogue

FAILED = 1
UNKNOWN_LAYOUT = 2
STALE_CATALOGUE = 3


class UnknownCacheLayout(EngineError):
    """The worker cannot read keys and values from vLLM's cache on this machine."""


_REFUSALS = {UNKNOWN_LAYOUT: UnknownCacheLayout, STALE_CATALOGUE: StaleCatalogue}


def check_request(request: DecodeRequest, bundle: Bundle, num_items: int) -> None:
    """Refuse a request that an engine could only fail on.

    Args:
        request: what was asked.
        bundle: what is served.
        num_items: N of the catalogue that the request is decoded with.

    Raises:
        RequestError: the prompt is empty, too long, or has an unknown token.
        ValueError: the width or the excluded rows break the protocol.
    """
    longest = bundle.manifest.prompt.max_tokens(bundle.manifest.num_levels)
    length = len(request.prompt_token_ids)
    if not 1 <= length <= longest:
        raise RequestError(f"the prompt has {length} tokens, this bundle's prompts have 1 to {longest}")
    vocab_size = bundle.manifest.vocab_size
    if min(request.prompt_token_ids) < 0 or max(request.prompt_token_ids) >= vocab_size:
        # vLLM 0.32.0 would look it up in the embedding, and its engine would die.
        raise RequestError(f"the prompt has token ids outside the vocabulary of {vocab_size}")
    if request.beam_width < 1:
        raise ValueError(f"beam_width must be at least 1, got {request.beam_width}")
    rows = request.exclude_rows
    if rows is not None and len(rows):
        inside = int(rows[0]) >= 0 and int(rows[-1]) < num_items
        if not inside or (np.diff(rows) <= 0).any():
            raise ValueError("exclude_rows must be sorted, unique rows of the catalogue")


@dataclass(frozen=True)
class RequestExtras:
    """What a pooling request asks for.

    Attributes:
        beam_width: W >= 1.
        exclude_rows: sorted, unique item rows or None. Shape: (E,), int64.
        trie_version: the version of the catalogue to decode with, None for the newest.
        filter, num_items: see `DecodeRequest`.
        self_test: the prompt's token ids, if the worker shall check the cache against the model.
    """

    beam_width: int
    exclude_rows: np.ndarray | None = None
    trie_version: str | None = None
    filter: str | None = None
    num_items: int = 0
    self_test: Sequence[int] | None = None

    @property
    def max_beams(self) -> int:
        """Most beams this request may have in work."""
        return max(self.beam_width, self.num_items)

    def pack(self) -> dict[str, Any]:
        """For vLLM's `PoolingParams.extra_kwargs`."""
        packed: dict[str, Any] = {"beam_width": int(self.beam_width)}
        if self.exclude_rows is not None and len(self.exclude_rows):
            # Bytes, because msgpack hands an untyped array back as a list of Python integers.
            packed["exclude_rows"] = np.asarray(self.exclude_rows, dtype="<i8").tobytes()
        if self.trie_version is not None:
            packed["trie_version"] = self.trie_version
        if self.filter is not None:
            packed["filter"] = self.filter
        if self.num_items > self.beam_width:
            packed["num_items"] = int(self.num_items)
        if self.self_test is not None:
            packed["self_test"] = list(self.self_test)
        return packed

    @classmethod
    def unpack(cls, packed: Mapping[str, Any] | None) -> RequestExtras:
        """Read back what `pack` wrote.

        Raises:
            EngineError: it makes no sense; the request did not come from our engine.
        """
        width = (packed or {}).get("beam_width")
        if packed is None or not isinstance(width, int) or width < 1:
            raise EngineError(f"a pooling request needs extra_kwargs['beam_width'] >= 1, got {width!r}")
        rows = packed.get("exclude_rows")
        rows = None if rows is None else np.frombuffer(rows, dtype="<i8").astype(np.int64)
        return cls(
            width,
            rows,
            packed.get("trie_version"),
            packed.get("filter"),
            packed.get("num_items", 0),
            packed.get("self_test"),
        )


def pack_beams(beams: Beams) -> torch.Tensor:
    """Beams -> reply. The trie version must be 16 hex digits, as `Trie.version` is."""
    version = int(beams.trie_version, 16)
    num_beams, num_levels = beams.codes.shape
    reply = np.zeros((1 + num_beams, num_levels + 3), dtype=np.float64)
    reply[0, :2] = version >> 32, version & 0xFFFFFFFF
    reply[1:, :num_levels] = beams.codes
    reply[1:, num_levels] = beams.first_row
    reply[1:, num_levels + 1] = beams.end_row
    reply[1:, num_levels + 2] = beams.logprobs
    return torch.from_numpy(reply)


def pack_refusal(kind: int, sentence: str) -> torch.Tensor:
    """A sentence instead of beams; `kind` is one of the constants above."""
    return torch.tensor([kind, *sentence.encode()], dtype=torch.float64)


def unpack_reply(reply: torch.Tensor) -> Beams:
    """Reply -> beams.

    Raises:
        UnknownCacheLayout: the worker cannot read the cache.
        StaleCatalogue: the worker no longer holds the catalogue that the request names.
        EngineError: the worker refused, with its sentence.
    """
    data = reply.numpy()
    if data.ndim == 1:
        sentence = bytes(data[1:].astype(np.uint8)).decode(errors="replace")
        raise _REFUSALS.get(int(data[0]), EngineError)(sentence)
    beams = data[1:]
    num_levels = data.shape[1] - 3
    return Beams(
        codes=beams[:, :num_levels].astype(np.int64),
        logprobs=beams[:, num_levels + 2].astype(np.float32),
        first_row=beams[:, num_levels].astype(np.int64),
        end_row=beams[:, num_levels + 1].astype(np.int64),
        trie_version=f"{int(data[0, 0]):08x}{int(data[0, 1]):08x}",
    )
