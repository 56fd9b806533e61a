"""Which items an answer holds: those of the beams first, then what fills it up."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.bundle.item_prior import ItemPrior
from service.catalogue import Backfill, Selection, Snapshot
from service.engine.protocol import Beams

Source = Literal["model", "sibling", "popular"]


@dataclass(frozen=True)
class Rotation:
    """Other items by seed: k are drawn without replacement instead of the k best taken.

    Gumbel noise of the seed and the item is added to the scores, and the k largest sums are such a draw
    (Gumbel-top-k, arXiv:1903.06059). An item's noise depends on nothing else, so that answers stay alike
    when the catalogue changes.

    Attributes:
        seed: the same one gives the same draw.
        strength: > 0; probabilities are proportional to exp(score / strength).
    """

    seed: str
    strength: float

    def noise(self, item_ids: Sequence[str]) -> np.ndarray:
        """What to add to the scores. Shape: (n,), float64."""
        digests = [
            hashlib.blake2b(f"{self.seed}\0{item_id}".encode("utf-8", "replace"), digest_size=8).digest()
            for item_id in item_ids
        ]
        uniform = (np.frombuffer(b"".join(digests), dtype="<u8").astype(np.float64) + 0.5) / 2.0**64
        return -self.strength * np.log(-np.log(np.minimum(uniform, 1 - 1e-12)))


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
    rotation: Rotation | None = None,
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
        rotation: draw from all that the beams reach.
    """
    is_score_final = prior is None and rotation is None
    picks: list[Pick] = []
    for first, end, logprob in zip(beams.first_row, beams.end_row, beams.logprobs, strict=True):
        rows = selection.keep(np.arange(first, end))
        picks += [Pick(int(row), "model", float(logprob)) for row in rows]
        if is_score_final and len(picks) >= num_wanted:
            break
    if is_score_final or not picks:
        return picks[:num_wanted]
    item_ids = snapshot.item_ids([pick.row for pick in picks])
    scores = np.array([pick.logprob for pick in picks])
    if prior is not None:
        known = snapshot.bundle_rows([item_id for item_id in history if snapshot.knows(item_id)])
        scores = prior.scores(scores, snapshot.bundle_rows(item_ids), known)
    if rotation is not None:
        scores = scores + rotation.noise(item_ids)
    return [picks[place] for place in np.argsort(-scores, kind="stable")[:num_wanted]]


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
