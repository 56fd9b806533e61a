"""Which items an answer holds: those of the beams first, then what fills it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.bundle.item_prior import ItemPrior
from service.catalogue import Backfill, Selection, Snapshot
from service.engine.protocol import Beams

Source = Literal["model", "sibling", "popular"]


@dataclass(frozen=True)
class Pick:
    """One recommended item row. `logprob` is that of its SID; None where the model did not choose it.

    The item prior may order items otherwise than their logprobs do.
    """

    row: int
    source: Source
    logprob: float | None = None


def model_picks(
    prior: ItemPrior | None,
    snapshot: Snapshot,
    history: Sequence[str],
    beams: Beams,
    num_wanted: int,
    selection: Selection,
) -> list[Pick]:
    """Allowed items of the beams, in the order of the bundle's item prior if it has one, else of the
    beams; items that share a SID and a score in the order of their rows.

    Args:
        prior: the bundle's.
        snapshot: what the beams were decoded under.
        history: item ids, oldest first; unknown ones are skipped.
        beams: best first.
        num_wanted: most items to return.
        selection: rows that may be returned.
    """
    picks: list[Pick] = []
    for first, end, logprob in zip(beams.first_row, beams.end_row, beams.logprobs, strict=True):
        rows = selection.keep(np.arange(first, end))
        picks += [Pick(int(row), "model", float(logprob)) for row in rows]
        if prior is None and len(picks) >= num_wanted:
            break
    if prior is not None and picks:
        rows = snapshot.bundle_rows(snapshot.item_ids([pick.row for pick in picks]))
        known = snapshot.bundle_rows([item_id for item_id in history if snapshot.knows(item_id)])
        scores = prior.scores(np.array([pick.logprob for pick in picks]), rows, known)
        picks = [picks[place] for place in np.argsort(-scores, kind="stable")]
    return picks[:num_wanted]


def fill(
    backfill: Backfill, beams: Beams | None, num_wanted: int, picks: list[Pick], selection: Selection
) -> list[Pick]:
    """What the beams did not reach: relatives of the beams first, then popular items."""
    missing = num_wanted - len(picks)
    if not missing:
        return []
    left = selection.without(np.array([pick.row for pick in picks]))
    siblings = left.excluded[:0] if beams is None else backfill.siblings(beams.codes, missing, left)
    popular = backfill.popular(missing - len(siblings), left.without(siblings))
    return [Pick(int(row), "sibling") for row in siblings] + [Pick(int(row), "popular") for row in popular]
