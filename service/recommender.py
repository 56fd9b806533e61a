"""The whole request path: item ids in, items out.

history -> rows and SIDs -> prompt -> constrained beams -> item rows, in the order of the item prior
(service/bundle/item_prior.py) if the bundle has one -> filled up to k -> records
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np

from service.bundle import Bundle, ContextReader
from service.catalogue import Backfill, Catalogue, ItemRecord, ItemRef, Selection, Snapshot
from service.catalogue.tiers import TIERS
from service.engine.admission import Admission
from service.engine.protocol import Beams, DecodeRequest
from service.errors import EngineError, EngineOverloaded, RequestError, StaleCatalogue
from service.explanations import Explanation, HistoryItem, effects_on, explain
from service.observability.timings import Timings
from service.picks import Pick, Rotation, Source, fill, model_picks
from service.recommendation_id import new_recommendation_id

__all__ = ["Missing", "Pick", "Query", "Recommendation", "Recommender", "Source"]

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
        widen_to: beams that may be kept instead where it takes more of them to reach k items.
        exclude_items: item ids that must not be recommended.
        exclude_seen: also leave out everything in the history.
        filter: what every recommended item must be like, as parsed JSON; None for all items. See
            service/decoding/filter_expression.py.
        explain: also say why; costs one more decode for each of the newest history items.
        context: free text of what is wanted; only for a bundle that was trained with it.
        tag: what the name of the answer holds besides; see `service.recommendation_id`.
        rotation: draw the items by a seed.
    """

    history: tuple[str, ...]
    k: int
    beam_width: int
    widen_to: int = 0
    exclude_items: tuple[str, ...] = ()
    exclude_seen: bool = False
    filter: Any = None
    explain: bool = False
    context: str = ""
    tag: str = ""
    rotation: Rotation | None = None


@dataclass(frozen=True)
class Recommendation:
    """The answer to a query: exactly min(k, items allowed) picks, best first.

    Attributes:
        picks: what is recommended, with the records in the same order.
        unknown_items: ids of the request that are not in the catalogue.
        is_short: fewer than k items were allowed.
        catalogue_version: of the snapshot that it was decoded under.
        missing: what this answer had to do without: "redis" (items come from memory), "engine" (items are
            popular ones), "history" (the user's stored one could not be read).
        explanations: one per pick, where the query asked for them.
        tiers: how many picks are of each popularity tier; see service/catalogue/tiers.py.
    """

    recommendation_id: str
    picks: list[Pick]
    records: list[ItemRecord]
    unknown_items: list[str]
    is_short: bool
    catalogue_version: int
    missing: tuple[Missing, ...] = ()
    explanations: list[Explanation] | None = None
    tiers: dict[str, int] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, int]:
        """How many picks came from where."""
        return dict(Counter(pick.source for pick in self.picks))

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
        self._context = (
            ContextReader.open(bundle.model_dir, bundle.manifest.levels)
            if bundle.manifest.context_trained
            else None
        )

    async def recommend(self, query: Query, timings: Timings) -> Recommendation:
        """Answer one query. Without a known item in the history and without context it gets the popular
        list, and so does everybody while the engine is away.

        Raises:
            BadFilter: the filter cannot be understood.
            RequestError: there is a context, and the bundle was not trained with any.
            EngineOverloaded: from the admission.
        """
        try:
            return await self._answer(query, timings)
        except StaleCatalogue:  # exchanged so often while this waited that the engine forgot the old one
            return await self._answer(query, timings)

    async def _answer(self, query: Query, timings: Timings) -> Recommendation:
        recommendation_id = new_recommendation_id(self._bundle.bundle_id, query.tag)
        snapshot = self._catalogue.snapshot  # one for the whole request: its rows mean the same throughout
        with timings.stage("resolve"):
            context = self._context_ids(query.context)
            asked = [*query.history, *query.exclude_items]
            refs = snapshot.resolve(asked)
            known = [HistoryItem(item_id, refs[item_id]) for item_id in query.history if item_id in refs]
            history = known[-self._bundle.manifest.prompt.history_limit :]
            canonical = is_allowed = None
            if query.filter is not None:  # in a thread: the first time it reads whole columns
                canonical, is_allowed = await asyncio.to_thread(_understand, query.filter, snapshot)
            selection = _selection(query, snapshot, refs, is_allowed)
        beams, request, missing = None, None, set[Missing]()
        prompt_of = partial(self._prompt, context=context)
        if (history or context) and selection.num_allowed:
            prompt = prompt_of([item.ref for item in history])
            request = _request(prompt, snapshot, query, selection, canonical, recommendation_id)
            with timings.stage("decode"):
                try:
                    beams = await self._decode(request)
                except (EngineOverloaded, StaleCatalogue):
                    raise
                except EngineError as error:
                    log.debug("answered without the engine: %s", error)
                    missing.add("engine")
        with timings.stage("fill"):
            selection = selection.without(snapshot.hidden_rows)  # also what went away during the decode
            num_wanted = min(query.k, selection.num_allowed)
            prior = self._bundle.prior
            picks = (
                model_picks(prior, snapshot, query.history, beams, num_wanted, selection, query.rotation)
                if beams
                else []
            )
            picks += fill(Backfill(snapshot), beams, num_wanted, picks, selection)
        explanations = None
        if query.explain:
            with timings.stage("explain"):
                explanations = await self._explain(
                    snapshot, history, request, picks, missing, prompt_of=prompt_of
                )
        with timings.stage("items"):
            records = await self._catalogue.records(snapshot, [pick.row for pick in picks])
        if records.is_degraded:
            missing.add("redis")
        return Recommendation(
            recommendation_id=recommendation_id,
            picks=picks,
            records=records.value,
            unknown_items=list(dict.fromkeys(item_id for item_id in asked if item_id not in refs)),
            is_short=num_wanted < query.k,
            catalogue_version=snapshot.version,
            missing=tuple(sorted(missing)),
            explanations=explanations,
            tiers=_tiers(snapshot, picks),
        )

    def _context_ids(self, text: str) -> list[int]:
        """Free text as token ids; empty for none."""
        if not text.strip():
            return []
        if self._context is None:
            raise RequestError(
                "'context' needs a model that was trained with free text, and this one was not; leave the "
                "field out, or serve a bundle of a recipe with prompt.context_share"
            )
        return self._context.token_ids(text)

    def _prompt(self, history: Sequence[ItemRef], context: Sequence[int] = ()) -> list[int]:
        manifest = self._bundle.manifest
        codes_TL = np.array([ref.codes for ref in history], dtype=np.int64)
        tokens_TL = manifest.tokens_of(codes_TL.reshape(-1, manifest.num_levels))
        return manifest.prompt.token_ids(tokens_TL, context)

    async def _explain(
        self,
        snapshot: Snapshot,
        history: list[HistoryItem],
        request: DecodeRequest | None,
        picks: list[Pick],
        missing: set[Missing],
        *,
        prompt_of: Callable[[Sequence[ItemRef]], list[int]],
    ) -> list[Explanation]:
        chosen = {pick.row: pick.logprob for pick in picks if pick.logprob is not None}
        effects = {}
        if request is not None and chosen:
            try:
                effects = await effects_on(
                    chosen, snapshot, history, request, prompt_of=prompt_of, decode=self._decode
                )
            except EngineOverloaded:
                raise
            except EngineError as error:
                log.debug("explained without the engine: %s", error)
                missing.add("engine")
        return explain(snapshot, history, [pick.row for pick in picks], effects)

    async def _decode(self, request: DecodeRequest) -> Beams:
        async with self._admission.reserve(request.max_beams):
            beams = await self._engine.decode(request)
        if beams.trie_version != request.trie_version:  # its rows would be those of other items
            raise EngineError(
                f"the engine decoded with trie {beams.trie_version}, asked was {request.trie_version}"
            )
        return beams


def _tiers(snapshot: Snapshot, picks: list[Pick]) -> dict[str, int]:
    counts = np.bincount(snapshot.tiers[[pick.row for pick in picks]], minlength=len(TIERS)) if picks else ()
    return {tier: int(count) for tier, count in zip(TIERS, counts, strict=False) if count}


def _request(
    prompt: list[int],
    snapshot: Snapshot,
    query: Query,
    selection: Selection,
    canonical: str | None,
    request_id: str,
) -> DecodeRequest:
    return DecodeRequest(
        prompt,
        query.beam_width,
        request_id,
        selection.excluded if len(selection.excluded) else None,
        filter=canonical,
        num_items=min(query.k, query.widen_to),
        trie_version=snapshot.trie_version,  # rows of request and reply are of this version
    )


def _understand(condition: Any, snapshot: Snapshot) -> tuple[str, np.ndarray]:
    """A filter in canonical form, and the rows it allows. Shape: (N,), bool."""
    canonical = snapshot.space.compile(condition)
    return canonical, snapshot.filter_rows(canonical)


def _selection(
    query: Query, snapshot: Snapshot, refs: dict[str, ItemRef], is_allowed: np.ndarray | None
) -> Selection:
    """What the request may get, less what went away since the snapshot."""
    item_ids = query.exclude_items + (query.history if query.exclude_seen else ())
    rows = {row for i in item_ids if i in refs and (row := refs[i].row) is not None}
    return Selection(snapshot.num_items, np.array(sorted(rows), dtype=np.int64), is_allowed)
