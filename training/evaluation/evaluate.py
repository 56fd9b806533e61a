"""Decode rows with the serving prompt, trie and beam search, and rank items for every row.

Shapes: R rows, L levels, W beam width, M places of a list (here M = W).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from tqdm import tqdm

from service.bundle.item_prior import ItemPrior
from service.bundle.manifest import Level
from service.bundle.prompt import PromptTemplate
from service.decoding.beam_search import Beams
from training.evaluation.errors import EvaluationError
from training.evaluation.metrics import NO_ITEM, ranks_of
from training.evaluation.serving_order import ServingOrder


class Decoder(Protocol):
    """What is measured; `service.engine.torch_engine.TorchDecoder` is one."""

    def decode(self, prompts: Sequence[Sequence[int]], widths: Sequence[int]) -> list[Beams]:
        """Beams of every prompt, best first."""
        ...


@dataclass(frozen=True)
class Ranking:
    """What was recommended for every row, in the order of the rows.

    Attributes:
        lists: item indices, best first, `NO_ITEM` where a list ends. Shape: (R, M), int64.
        ranks: rank of the target item, ties by the serving order; 0 = missed. Shape: (R,), int64.
        sid_ranks: rank of the target's SID, whatever items share it. Shape: (R,), int64.
        ranks_alone: `ranks` by the model's logprob alone, where a prior has ordered the items; or None.
    """

    lists: np.ndarray
    ranks: np.ndarray
    sid_ranks: np.ndarray
    ranks_alone: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class RowDecoder:
    """Decodes rows as the service would.

    Attributes:
        decoder: the model with the trie of `order`.
        order: the bundle's order of items.
        levels: token ranges of the levels.
        prompt: the template that serves.
        beam_width: W, beams kept and places of a list.
        max_beam_rows: beams decoded at once.
    """

    decoder: Decoder
    order: ServingOrder
    levels: Sequence[Level]
    prompt: PromptTemplate
    beam_width: int
    max_beam_rows: int = 3200

    def rank(
        self,
        rows: pl.DataFrame,
        *,
        label: str | None = None,
        contexts: Sequence[Sequence[int]] | None = None,
        prior: ItemPrior | None = None,
    ) -> Ranking:
        """Recommend for every row and find its target.

        Args:
            rows: columns history (lists of item indices, oldest first) and target.
            label: name of the progress bar; None shows none.
            contexts: free text of every row as token ids; None for none.
            prior: orders what the beams reach, as the service does with the bundle's prior.

        Raises:
            EvaluationError: a result is no valid item, or there are fewer of them than there should be.
        """
        order = self.order
        targets = rows["target"].to_numpy()
        histories = rows["history"].to_list()
        lists = np.full((rows.height, self.beam_width), NO_ITEM, dtype=np.int64)
        sid_ranks = np.zeros(rows.height, dtype=np.int64)
        ranks_alone = None if prior is None else np.zeros(rows.height, dtype=np.int64)
        for row, beams in self.beams(rows, label=label, contexts=contexts):
            found, logprobs = order.candidates(beams)
            if prior is not None and ranks_alone is not None:
                hit = np.flatnonzero(found[: self.beam_width] == order.row_of_item[targets[row]])
                ranks_alone[row] = hit[0] + 1 if len(hit) else 0
                scores = prior.scores(logprobs, found, order.row_of_item[histories[row]])
                found = found[np.argsort(-scores, kind="stable")]
            shown = found[: self.beam_width]
            lists[row, : len(shown)] = order.item_of_row[shown]
            sid_ranks[row] = order.sid_rank(found, int(targets[row]))
        return Ranking(lists, ranks_of(lists, targets), sid_ranks, ranks_alone)

    def beams(
        self,
        rows: pl.DataFrame,
        *,
        label: str | None = None,
        contexts: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[tuple[int, Beams]]:
        """Beams of every row, in an order that decodes fast: (row number, its beams). See `rank`.

        Raises:
            EvaluationError: there are fewer beams than there should be.
        """
        prompts = spell_prompts(rows["history"], self.order, self.levels, self.prompt, contexts)
        num_expected = min(self.beam_width, self.order.trie.num_leaves)
        with tqdm(total=rows.height, desc=label, unit="row", disable=label is None, mininterval=0.5) as bar:
            for batch in _batches(prompts, max(1, self.max_beam_rows // self.beam_width)):
                decoded = self.decoder.decode([prompts[row] for row in batch], [self.beam_width] * len(batch))
                for row, beams in zip(batch, decoded, strict=True):
                    if len(beams.codes) != num_expected:
                        raise EvaluationError(
                            f"{len(beams.codes)} beams came back where {num_expected} items can be reached; "
                            "the decoder is broken"
                        )
                    yield row, beams
                bar.update(len(batch))


def spell_prompts(
    histories: pl.Series,
    order: ServingOrder,
    levels: Sequence[Level],
    prompt: PromptTemplate,
    contexts: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Token ids of the prompt of every history, with its free text where there is one."""
    first_ids = np.asarray([level.first_token_id for level in levels], dtype=np.int64)
    tokens_of_item = (order.codes_of_row[order.row_of_item].astype(np.int64) + first_ids).tolist()
    texts = contexts if contexts is not None else [()] * len(histories)
    return [
        prompt.token_ids([tokens_of_item[item] for item in history], text)
        for history, text in zip(histories.to_list(), texts, strict=True)
    ]


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Row numbers, prompts of like length together: padding costs time and nothing else."""
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]
