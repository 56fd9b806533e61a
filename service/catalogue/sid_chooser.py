"""Which semantic ID an item gets: the one it has while its text stays, else the nearest free one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import numpy as np

from service.bundle.layout import TOKENIZER_DIR
from service.catalogue.bundle_items import BundleItems
from service.catalogue.live_items import LiveItems
from service.catalogue.records import ItemRecord
from service.errors import BundleError, CannotChange
from service.semantic_ids.assignment import SidAssigner
from service.semantic_ids.item_text import item_text
from service.semantic_ids.tokenizer import SemanticIdTokenizer

Codes = tuple[int, ...]
ItemText = tuple[str, str, str]  # title, description, metadata as JSON


class SidChooser:
    """The bundle's own encoder and codebooks, and which SIDs are taken now.

    Args:
        base: the bundle's items.
    """

    def __init__(self, base: BundleItems) -> None:
        self._base = base
        self._tokenizer: SemanticIdTokenizer | None = None
        self._problem: CannotChange | None = None
        self._assigner: SidAssigner | None = None
        self._live: LiveItems | None = None  # what the assigner follows
        self._vectors: dict[str, np.ndarray] = {}  # kept for a commit that must be tried again

    async def choose(
        self, wanted: Sequence[ItemRecord], before: dict[str, ItemRecord], live: LiveItems
    ) -> tuple[list[Codes], list[Codes]]:
        """A semantic ID for every item that is about to be written.

        An item keeps its SID while what the encoder reads of it stays the same. An item of the bundle
        that comes back after it was deleted gets the one that the model was trained with, if it is free.

        Args:
            wanted: the items, `codes` not set.
            before: those of them that there are now.
            live: who has which SID now; not advanced meanwhile, or the commit will fail.

        Returns:
            SIDs in the order of `wanted`, and those that were assigned anew: `release` these if nothing
            comes of it.

        Raises:
            CannotChange: a new SID is needed, and the bundle has no encoder.
            CatalogueError: every SID is taken.
        """
        await self._open()
        kept = await asyncio.to_thread(self._kept, wanted, before, live)
        homeless = [record for record, codes in zip(wanted, kept, strict=True) if codes is None]
        if not homeless:
            return [codes for codes in kept if codes is not None], []
        vectors = await asyncio.to_thread(self._vectors_of, [text_of(record) for record in homeless])
        assigner = await self._synced(live)
        held = [codes for codes in kept if codes is not None and not live.num_holders(codes)]
        for codes in held:  # free until now, and about to be in use again
            assigner.claim(codes)
        try:
            found = await asyncio.to_thread(assigner.assign, vectors)
        except BaseException:
            self._assigner = None  # what it claimed half-way is unknown
            raise
        assigned = [tuple(codes) for codes in found.tolist()]
        new = iter(assigned)
        return [next(new) if codes is None else codes for codes in kept], held + assigned

    def release(self, chosen: Sequence[Codes], live: LiveItems) -> None:
        """Make SIDs free again that no item came to have."""
        for codes in chosen:
            if self._assigner is not None and not live.num_holders(codes):
                self._assigner.release(codes)

    def forget(self) -> None:
        """Drop remembered vectors."""
        self._vectors = {}

    async def tokenizer_or_none(self) -> SemanticIdTokenizer | None:
        """The bundle's way from text to codes; None if it has none."""
        await self._open()
        return self._tokenizer

    async def _open(self) -> None:
        if self._tokenizer is not None or self._problem is not None:
            return
        directory = self._base.bundle.tokenizer_dir
        try:
            if not self._base.can_change:
                raise BundleError("its semantic IDs are more than 64 bits can count")
            self._tokenizer = await asyncio.to_thread(SemanticIdTokenizer.load, directory)
        except BundleError as error:
            self._problem = CannotChange(
                f"the bundle being served cannot give new texts a semantic ID ({error}); export it again "
                f"with its {TOKENIZER_DIR}/. Deletes, and changes that keep the text, are possible"
            )

    def _opened(self) -> SemanticIdTokenizer:
        if self._tokenizer is None:
            assert self._problem is not None
            raise CannotChange(str(self._problem)) from self._problem
        return self._tokenizer

    def _kept(
        self, wanted: Sequence[ItemRecord], before: dict[str, ItemRecord], live: LiveItems
    ) -> list[Codes | None]:
        kept: list[Codes | None] = []
        taken: set[Codes] = set()
        for record in wanted:
            codes, old = None, before.get(record.item_id)
            if old is not None and self._reads_same(record, old):
                codes = old.codes
            elif (old is None or old.version) and (row := self._base.row_of(record.item_id)) is not None:
                trained = self._base.record(row)
                is_free = not live.num_holders(trained.codes) and trained.codes not in taken
                if is_free and self._reads_same(record, trained):
                    codes = trained.codes
                    taken.add(codes)
            kept.append(codes)
        return kept

    def _reads_same(self, record: ItemRecord, other: ItemRecord) -> bool:
        text, other_text = text_of(record), text_of(other)
        if self._tokenizer is None:
            return text[:2] == other_text[:2]
        config = self._tokenizer.text
        return text == other_text or item_text(*text, config) == item_text(*other_text, config)

    def _vectors_of(self, texts: Sequence[ItemText]) -> np.ndarray:
        tokenizer = self._opened()
        read = [item_text(*text, tokenizer.text) for text in texts]
        if new := list(dict.fromkeys(text for text in read if text not in self._vectors)):
            vectors = tokenizer.codebooks.project(tokenizer.encoder.transform(new))
            self._vectors.update(zip(new, vectors, strict=True))
        return np.stack([self._vectors[text] for text in read])

    async def _synced(self, live: LiveItems) -> SidAssigner:
        """The assigner, knowing which SIDs are taken now."""
        if self._assigner is None or self._live is not live:
            taken = self._base.bundle.semantic_ids
            self._assigner = await asyncio.to_thread(self._opened().assigner, taken)
            self._live = live
            live.touched_sids |= set(live.held_differently())
        for codes in live.touched_sids:
            (self._assigner.claim if live.num_holders(codes) else self._assigner.release)(codes)
        live.touched_sids.clear()
        return self._assigner


def text_of(record: ItemRecord) -> ItemText:
    """What an encoder may read of an item."""
    return record.title, record.description or "", json.dumps(record.metadata, ensure_ascii=False)
