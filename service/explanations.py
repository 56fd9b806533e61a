"""Why an item: from what the model and the semantic IDs know, never made up.

Shared codes: which items of the history begin with the same codes, and the words that tell the items
below such a beginning from all others. Effects: the model is asked again without each of the newest
history items; how much less it then believes in a recommended item is what that history item did for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.catalogue import ItemRef, Snapshot
from service.engine.protocol import Beams, DecodeRequest

MAX_EFFECTS = 8  # history items that the model is asked again without: one decode each
MAX_RELATIVES = 3


@dataclass(frozen=True)
class HistoryItem:
    """A known item of the history, as the model read it."""

    item_id: str
    ref: ItemRef


@dataclass(frozen=True)
class SharedCodes:
    """A history item whose semantic ID begins like the recommended one's.

    Attributes:
        num_levels: codes that are the same, from the first on; >= 1.
    """

    item_id: str
    num_levels: int


@dataclass(frozen=True)
class Effect:
    """What one history item did for a recommended one.

    Attributes:
        logprob_change: log-probability with the whole history minus that without this item; positive
            speaks for the recommended item.
    """

    item_id: str
    logprob_change: float


@dataclass(frozen=True)
class Explanation:
    """Why one item was recommended.

    Attributes:
        words: for every beginning of its semantic ID, from one code to all, words of the titles that
            begin so; a level without telling words is empty. Length L.
        shared: history items whose IDs begin alike, nearest first.
        effects: largest first; empty where the model did not choose the item, where the history is a single
            item (without it there is nothing to read), or where the engine could not be asked again.
    """

    words: tuple[tuple[str, ...], ...]
    shared: tuple[SharedCodes, ...]
    effects: tuple[Effect, ...]


def explain(
    snapshot: Snapshot,
    history: Sequence[HistoryItem],
    rows: Sequence[int],
    effects: Mapping[int, Sequence[Effect]],
) -> list[Explanation]:
    """Explain recommended items.

    Args:
        snapshot: what they were decoded under.
        history: known items that the model read, oldest first.
        rows: recommended item rows.
        effects: from `effects_on`.
    """
    words = snapshot.code_words
    found = []
    for row in rows:
        codes = snapshot.codes_of(row)
        found.append(
            Explanation(
                words=tuple(words.of(codes[:depth]) for depth in range(1, len(codes) + 1)),
                shared=_shared(codes, history),
                effects=tuple(sorted(effects.get(row, ()), key=lambda effect: -effect.logprob_change)),
            )
        )
    return found


async def effects_on(
    chosen: Mapping[int, float],
    snapshot: Snapshot,
    history: Sequence[HistoryItem],
    request: DecodeRequest,
    *,
    prompt_of: Callable[[Sequence[ItemRef]], Sequence[int]],
    decode: Callable[[DecodeRequest], Awaitable[Beams]],
) -> dict[int, list[Effect]]:
    """What each of the newest history items did for the items that the model chose.

    The decodes are restricted to the chosen items, so every one of them is scored.

    Args:
        chosen: row -> log-probability with the whole history.
        snapshot, history: as in `explain`.
        request: what the engine was asked.
        prompt_of: the prompt of a history.
        decode: asks the engine.

    Raises:
        EngineError: the engine could not be asked again.
    """
    only = snapshot.space.compile({"item_id": {"in": snapshot.item_ids(list(chosen))}})
    requests = {}
    for item_id in list(dict.fromkeys(item.item_id for item in reversed(history)))[:MAX_EFFECTS]:
        if rest := [item.ref for item in history if item.item_id != item_id]:
            requests[item_id] = replace(
                request,
                prompt_token_ids=prompt_of(rest),
                beam_width=len(chosen),
                request_id=f"{request.request_id}.without-{len(requests)}",
                exclude_rows=None,
                filter=only,
                num_items=0,
            )
    effects: dict[int, list[Effect]] = {row: [] for row in chosen}
    replies = await asyncio.gather(*map(decode, requests.values()))
    for item_id, beams in zip(requests, replies, strict=True):
        for first, end, logprob in zip(beams.first_row, beams.end_row, beams.logprobs, strict=True):
            for row in effects.keys() & range(int(first), int(end)):
                effects[row].append(Effect(item_id, chosen[row] - float(logprob)))
    return effects


def _shared(codes: tuple[int, ...], history: Sequence[HistoryItem]) -> tuple[SharedCodes, ...]:
    """Nearest relatives in the history, the newest first among equals."""
    depth_of: dict[str, int] = {}
    for item in reversed(history):
        same = np.equal(codes, item.ref.codes)
        depth_of.setdefault(item.item_id, len(codes) if same.all() else int(np.argmin(same)))
    nearest = sorted(depth_of.items(), key=lambda pair: -pair[1])[:MAX_RELATIVES]
    return tuple(SharedCodes(item_id, depth) for item_id, depth in nearest if depth)
