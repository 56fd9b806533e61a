"""The whole request path: item ids in, items out.

history -> rows and SIDs -> prompt -> constrained beams -> item rows -> filled up to k -> records
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from service.bundle import Bundle
from service.catalogue import Backfill, Catalogue, ItemRecord, ItemRef
from service.engine.admission import Admission
from service.engine.protocol import Beams, DecodeRequest
from service.errors import EngineError, EngineOverloaded
from service.observability.timings import Timings
from service.recommendation_id import new_recommendation_id

Source = Literal["model", "sibling", "popular"]
Missing = Literal["redis", "engine", "history"]

log = logging.getLogger(__name__)


class Decoder(Protocol):
    """What the recommender needs of an engine."""

    async def decode(self, request: DecodeRequest) -> Beams: ...


@dataclass(frozen=True)
class Query:
    """One request, checked.

    Attributes:
        history: item ids, oldest first; unknown ones are skipped and reported.
        k: items wanted, >= 1.
        beam_width: beams kept per level, >= 1.
        exclude_items: item ids that must not be recommended.
        exclude_seen: also leave out everything in the history.
    """

    history: tuple[str, ...]
    k: int
    beam_width: int
    exclude_items: tuple[str, ...] = ()
    exclude_seen: bool = False


@dataclass(frozen=True)
class Pick:
    """One recommended item row. `logprob` is that of its SID; None where the model did not choose it."""

    row: int
    source: Source
    logprob: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """The answer to a query: exactly min(k, items allowed) picks, best first.

    Attributes:
        picks: what is recommended, with the records in the same order.
        unknown_items: ids of the request that are not in the catalogue.
        is_short: fewer than k items were allowed.
        missing: what this answer had to do without: "redis" (items come from memory), "engine" (items are
            popular ones), "history" (the user's stored one could not be read).
    """

    recommendation_id: str
    picks: list[Pick]
    records: list[ItemRecord]
    unknown_items: list[str]
    is_short: bool
    missing: tuple[Missing, ...] = ()

    @property
    def is_degraded(self) -> bool:
        """Something was missing; a later answer will be better."""
        return bool(self.missing)


class Recommender:
    """Answers queries for one bundle.

    Args:
        bundle: an opened bundle.
        catalogue: its items.
        engine: its model.
        admission: bound on the beams in work.
    """

    def __init__(self, bundle: Bundle, catalogue: Catalogue, engine: Decoder, admission: Admission) -> None:
        self._bundle = bundle
        self._catalogue = catalogue
        self._engine = engine
        self._admission = admission
        self._backfill = Backfill(bundle)

    async def recommend(self, query: Query, timings: Timings) -> Recommendation:
        """Answer one query. A history without a known item gets the popular list, and so does everybody
        while the engine is away.

        Raises:
            EngineOverloaded: from the admission.
        """
        recommendation_id = new_recommendation_id(self._bundle.bundle_id)
        with timings.stage("resolve"):
            asked = [*query.history, *query.exclude_items]
            found = await self._catalogue.resolve(asked)
            history = [found.value[item_id] for item_id in query.history if item_id in found.value]
            excluded = self._excluded_rows(query, found.value)
        num_wanted = min(query.k, self._bundle.manifest.num_items - len(excluded))
        beams, missing = None, set[Missing]()
        if history and num_wanted:
            with timings.stage("decode"):
                try:
                    beams = await self._decode(history, query.beam_width, excluded, recommendation_id)
                except EngineOverloaded:
                    raise
                except EngineError as error:
                    log.debug("answered without the engine: %s", error)
                    missing.add("engine")
        with timings.stage("fill"):
            picks = self._model_picks(beams, num_wanted, excluded) if beams else []
            picks += self._fill(beams, num_wanted, picks, excluded)
        with timings.stage("items"):
            records = await self._catalogue.records([pick.row for pick in picks])
        if found.is_degraded or records.is_degraded:
            missing.add("redis")
        return Recommendation(
            recommendation_id=recommendation_id,
            picks=picks,
            records=records.value,
            unknown_items=list(dict.fromkeys(item_id for item_id in asked if item_id not in found.value)),
            is_short=num_wanted < query.k,
            missing=tuple(sorted(missing)),
        )

    def _excluded_rows(self, query: Query, refs: dict[str, ItemRef]) -> np.ndarray:
        """Rows that must not be recommended, sorted and unique. Shape: (E,), int64."""
        item_ids = query.exclude_items + (query.history if query.exclude_seen else ())
        return np.array(sorted({refs[i].row for i in item_ids if i in refs}), dtype=np.int64)

    async def _decode(
        self, history: list[ItemRef], beam_width: int, excluded: np.ndarray, request_id: str
    ) -> Beams:
        manifest = self._bundle.manifest
        newest = history[-manifest.prompt.history_limit :]
        tokens_TL = manifest.tokens_of(np.array([ref.codes for ref in newest]))
        prompt = manifest.prompt.token_ids(tokens_TL)
        exclude_rows = excluded if len(excluded) else None
        version = manifest.trie_version  # rows of the request and of the reply are of this version
        with self._admission.reserve(beam_width):
            beams = await self._engine.decode(
                DecodeRequest(prompt, beam_width, request_id, exclude_rows, trie_version=version)
            )
        if beams.trie_version != version:  # its rows would be those of other items
            raise EngineError(f"the engine decoded with trie {beams.trie_version}, asked was {version}")
        return beams

    def _model_picks(self, beams: Beams, num_wanted: int, excluded: np.ndarray) -> list[Pick]:
        """Every allowed item of every beam; items that share a SID in the order of their rows."""
        picks: list[Pick] = []
        for first, end, logprob in zip(beams.first_row, beams.end_row, beams.logprobs, strict=True):
            rows = np.arange(first, end)
            picks += [Pick(int(row), "model", float(logprob)) for row in rows[~np.isin(rows, excluded)]]
            if len(picks) >= num_wanted:
                break
        return picks[:num_wanted]

    def _fill(
        self, beams: Beams | None, num_wanted: int, picks: list[Pick], excluded: np.ndarray
    ) -> list[Pick]:
        """What the beams did not reach: relatives of the beams first, then popular items."""
        if len(picks) == num_wanted:
            return []
        taken = np.concatenate([excluded, [pick.row for pick in picks]]).astype(np.int64)
        missing = num_wanted - len(picks)
        siblings = taken[:0] if beams is None else self._backfill.siblings(beams.codes, missing, taken)
        popular = self._backfill.popular(missing - len(siblings), np.concatenate([taken, siblings]))
        return [Pick(int(row), "sibling") for row in siblings] + [
            Pick(int(row), "popular") for row in popular
        ]
