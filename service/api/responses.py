"""From the recommender's answer to what is sent."""

from __future__ import annotations

import math

import numpy as np

from service import explanations
from service.api.explanation_models import Effect, Explanation, SharedCodes
from service.api.models import RecommendedItem, RecommendResponse
from service.bundle import Bundle
from service.recommender import Recommendation


def response_of(answer: Recommendation, bundle: Bundle, timings: dict[str, float]) -> RecommendResponse:
    """What is sent.

    Args:
        answer: of the recommender.
        bundle: that it was made with.
        timings: milliseconds per stage.
    """
    manifest = bundle.manifest
    items = [
        RecommendedItem(
            item_id=record.item_id,
            rank=place + 1,
            logprob=pick.logprob,
            probability=None if pick.logprob is None else math.exp(pick.logprob),
            semantic_id=manifest.spell(np.array(record.codes)),
            title=record.title,
            metadata=record.metadata,
            source=pick.source,
            explanation=None if answer.explanations is None else _explanation(answer.explanations[place]),
        )
        for place, (pick, record) in enumerate(zip(answer.picks, answer.records, strict=True))
    ]
    return RecommendResponse(
        recommendation_id=answer.recommendation_id,
        items=items,
        unknown_items=answer.unknown_items,
        short=answer.is_short,
        bundle_id=bundle.bundle_id,
        catalogue_version=answer.catalogue_version,
        degraded=answer.is_degraded,
        timings=timings,
    )


def _explanation(found: explanations.Explanation) -> Explanation:
    return Explanation(
        code_words=[list(words) for words in found.words],
        shared=[SharedCodes(item_id=one.item_id, levels=one.num_levels) for one in found.shared],
        effects=[Effect(item_id=one.item_id, logprob_change=one.logprob_change) for one in found.effects],
    )
