"""From the recommender's answer to what is sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from service import explanations
from service.api.explanation_models import Effect, Explanation, SharedCodes
from service.api.models import ItemField, RecommendedItem, RecommendResponse
from service.bundle import Bundle
from service.catalogue import ItemRecord
from service.picks import Pick
from service.recommender import Recommendation


def response_of(
    answer: Recommendation,
    bundle: Bundle,
    timings: dict[str, float],
    fields: Sequence[ItemField] | None = None,
) -> RecommendResponse:
    """What is sent. What `fields` leaves out stays unset.

    Args:
        answer: of the recommender.
        bundle: that it was made with.
        timings: milliseconds per stage.
        fields: what to tell of every item; None for everything.
    """
    items = []
    for place, (pick, record) in enumerate(zip(answer.picks, answer.records, strict=True)):
        told = _told(pick, record, bundle)
        if fields is not None:
            told = {name: value for name, value in told.items() if name in fields}
        if answer.explanations is not None:
            told["explanation"] = _explanation(answer.explanations[place])
        items.append(RecommendedItem(item_id=record.item_id, rank=place + 1, source=pick.source, **told))
    return RecommendResponse(
        recommendation_id=answer.recommendation_id,
        items=items,
        unknown_items=answer.unknown_items,
        short=answer.is_short,
        bundle_id=bundle.bundle_id,
        catalogue_version=answer.catalogue_version,
        degraded=answer.is_degraded,
        timings=timings,
        variant=None,  # set, so that it is sent
        assigned_variant=None,
    )


def _told(pick: Pick, record: ItemRecord, bundle: Bundle) -> dict[str, Any]:
    """`ItemField` -> what it is."""
    return {
        "title": record.title,
        "metadata": record.metadata,
        "semantic_id": bundle.manifest.spell(np.array(record.codes)),
        "logprob": pick.logprob,
        "probability": None if pick.logprob is None else math.exp(pick.logprob),
    }


def _explanation(found: explanations.Explanation) -> Explanation:
    return Explanation(
        code_words=[list(words) for words in found.words],
        shared=[SharedCodes(item_id=one.item_id, levels=one.num_levels) for one in found.shared],
        effects=[Effect(item_id=one.item_id, logprob_change=one.logprob_change) for one in found.effects],
    )
