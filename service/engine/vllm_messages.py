"""What crosses the border to vLLM's worker: a request's extras, and the reply.

vLLM carries a pooling request's parameters as msgpack and its reply as one tensor, so both are
spelled in plain numbers. Float64 holds every code, item row (< 2^31) and log-probability exactly.

A reply with beams has one header row [version high, version low, 0...] and one row
[code_0 .. code_{L-1}, first_row, end_row, logprob] per beam. Shape: (1 + B, L + 3), float64.
A refusal is one dimension: [kind, UTF-8 bytes of a sentence...].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from service.decoding.beam_search import Beams
from service.errors import EngineError

FAILED = 1
UNKNOWN_LAYOUT = 2


class UnknownCacheLayout(EngineError):
    """The worker cannot read keys and values from vLLM's cache on this machine."""


def request_extras(beam_width: int, exclude_rows: np.ndarray | None) -> dict[str, Any]:
    """Extras of a pooling request.

    Args:
        beam_width: W >= 1.
        exclude_rows: sorted, unique item rows or None. Shape: (E,), integers.
    """
    extras: dict[str, Any] = {"beam_width": int(beam_width)}
    if exclude_rows is not None and len(exclude_rows):
        # Bytes, because msgpack hands an untyped array back as a list of Python integers.
        extras["exclude_rows"] = np.asarray(exclude_rows, dtype="<i8").tobytes()
    return extras


def read_request_extras(extras: Mapping[str, Any] | None) -> tuple[int, np.ndarray | None]:
    """Beam width and excluded rows of a request.

    Raises:
        EngineError: they are missing or make no sense; the request did not come from our engine.
    """
    width = (extras or {}).get("beam_width")
    if extras is None or not isinstance(width, int) or width < 1:
        raise EngineError(f"a pooling request needs extra_kwargs['beam_width'] >= 1, got {width!r}")
    packed = extras.get("exclude_rows")
    return width, None if packed is None else np.frombuffer(packed, dtype="<i8").astype(np.int64)


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
    """A sentence instead of beams; `kind` is FAILED or UNKNOWN_LAYOUT."""
    return torch.tensor([kind, *sentence.encode()], dtype=torch.float64)


def unpack_reply(reply: torch.Tensor) -> Beams:
    """Reply -> beams.

    Raises:
        UnknownCacheLayout: the worker cannot read the cache.
        EngineError: the worker refused, with its sentence.
    """
    data = reply.numpy()
    if data.ndim == 1:
        sentence = bytes(data[1:].astype(np.uint8)).decode(errors="replace")
        raise (UnknownCacheLayout if data[0] == UNKNOWN_LAYOUT else EngineError)(sentence)
    beams = data[1:]
    num_levels = data.shape[1] - 3
    return Beams(
        codes=beams[:, :num_levels].astype(np.int64),
        logprobs=beams[:, num_levels + 2].astype(np.float32),
        first_row=beams[:, num_levels].astype(np.int64),
        end_row=beams[:, num_levels + 1].astype(np.int64),
        trie_version=f"{int(data[0, 0]):08x}{int(data[0, 1]):08x}",
    )
