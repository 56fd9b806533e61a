"""The beam search against brute force, with log-probabilities drawn at random per prefix."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decoding.beam_search import BeamState, beam_search
from service.decoding.filters import AllowedRows
from service.decoding.trie import Trie
from service.errors import EngineError

SIZES = (4, 5, 3)


class TableScorer:
    """Log-probabilities looked up by prefix; every request has a table of its own."""

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = seeds
        self.prefixes: list[list[tuple[int, ...]]] = [[()] for _ in seeds]

    @staticmethod
    def logprobs(seed: int, prefix: tuple[int, ...]) -> torch.Tensor:
        rng = np.random.default_rng([seed, *prefix, len(prefix)])
        return torch.from_numpy(rng.normal(size=SIZES[len(prefix)]).astype(np.float32)).log_softmax(0)

    def _scores(self) -> torch.Tensor:
        return torch.stack(
            [
                torch.stack([self.logprobs(s, p) for p in ps])
                for s, ps in zip(self.seeds, self.prefixes, strict=True)
            ]
        )

    def first(self) -> torch.Tensor:
        return self._scores()

    def advance(self, parents: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        self.prefixes = [
            [(*old[p], c) for p, c in zip(parents[r].tolist(), codes[r].tolist(), strict=True)]
            for r, old in enumerate(self.prefixes)
        ]
        return self._scores()


def plain_beam_search(
    seed: int, sids: list[tuple[int, ...]], width: int, wanted: int = 0
) -> list[tuple[tuple[int, ...], float]]:
    """The textbook algorithm over the allowed items alone; wider where `width` does not reach `wanted`."""
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for level in range(len(SIZES)):
        grown = []
        for prefix, score in beams:
            table = TableScorer.logprobs(seed, prefix)
            for code in sorted({sid[level] for sid in sids if sid[:level] == prefix}):
                grown.append(((*prefix, code), score + float(table[code])))
        grown.sort(key=lambda beam: -beam[1])
        reached, beams = 0, []
        for prefix, score in grown:
            if len(beams) >= width and reached >= wanted:
                break
            reached += sum(sid[: level + 1] == prefix for sid in sids)
            beams.append((prefix, score))
    return beams


catalogue = st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)), min_size=1, max_size=25).map(
    sorted
)


request = st.tuples(
    st.integers(0, 9),  # seed of the scores
    st.integers(1, 30),  # width
    st.sampled_from([0, 1, 3, 10, 30]),  # items wanted
    st.sets(st.integers(0, 24)),  # rows excluded
    st.sampled_from([-1, 0, 1]),  # filter
)


@given(catalogue, st.lists(request, min_size=1, max_size=4), st.booleans(), st.data())
@settings(max_examples=120, deadline=None)
def test_equals_beam_search_over_the_allowed_items_alone(sids, requests, is_static, data) -> None:
    codes = np.array(sids)
    trie = Trie.build(codes, SIZES)
    bitmaps = np.array(
        [data.draw(st.lists(st.booleans(), min_size=len(sids), max_size=len(sids))) for _ in range(2)]
    )
    sums = np.zeros((2, len(sids) + 1), dtype=np.int32)
    sums[:, 1:] = bitmaps.cumsum(1)
    seeds, widths, wanted, excluded, filter_of = zip(*requests, strict=True)
    excluded = [np.array(sorted(r for r in rows if r < len(sids)), dtype=np.int64) for rows in excluded]
    allowed = AllowedRows(len(sids), excluded, filter_sums=torch.from_numpy(sums), filter_of=filter_of)
    state = BeamState(trie, widths, allowed, wanted, is_static=is_static)
    results = beam_search(TableScorer(list(seeds)), state)
    for r, beams in enumerate(results):
        mask = np.ones(len(sids), dtype=bool) if filter_of[r] < 0 else bitmaps[filter_of[r]].astype(bool)
        mask[excluded[r]] = False
        left = [tuple(sid) for sid in codes[mask].tolist()]
        expected = plain_beam_search(seeds[r], left, widths[r], wanted[r])
        assert [tuple(sid) for sid in beams.codes.tolist()] == [sid for sid, _ in expected]
        assert beams.logprobs == pytest.approx([score for _, score in expected], abs=1e-5)
        for sid, first, end in zip(beams.codes.tolist(), beams.first_row, beams.end_row, strict=True):
            assert (codes[first:end] == sid).all()
        num_reached = sum(int(mask[f:e].sum()) for f, e in zip(beams.first_row, beams.end_row, strict=True))
        assert num_reached >= min(wanted[r], len(left))
        assert len(beams.codes) >= min(widths[r], len(set(left)))


@given(catalogue, st.integers(0, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_full_width_is_the_filtered_exhaustive_ranking_at_every_selectivity(sids, seed, data) -> None:
    codes = np.array(sids)
    trie = Trie.build(codes, SIZES)
    (everything,) = beam_search(TableScorer([seed]), BeamState(trie, [100]))
    ranking = [
        row for f, e in zip(everything.first_row, everything.end_row, strict=True) for row in range(f, e)
    ]
    assert sorted(ranking) == list(range(len(sids)))
    order = data.draw(st.permutations(range(len(sids))))
    for num_allowed in range(1, len(sids) + 1):
        mask = np.zeros(len(sids), dtype=bool)
        mask[order[:num_allowed]] = True
        sums = np.concatenate([[0], mask.cumsum()]).astype(np.int32)
        allowed = AllowedRows(len(sids), [None], filter_sums=torch.from_numpy(sums[None]), filter_of=[0])
        (beams,) = beam_search(TableScorer([seed]), BeamState(trie, [100], allowed))
        rows = [
            r for f, e in zip(beams.first_row, beams.end_row, strict=True) for r in range(f, e) if mask[r]
        ]
        assert rows == [row for row in ranking if mask[row]]


def test_full_width_is_the_exhaustive_ranking() -> None:
    sids = sorted(itertools.product(*(range(size) for size in SIZES)))
    trie = Trie.build(np.array(sids), SIZES)
    (beams,) = beam_search(TableScorer([3]), BeamState(trie, [10_000]))
    assert sorted(map(tuple, beams.codes.tolist())) == sids
    assert (np.diff(beams.logprobs) <= 0).all()
    assert np.exp(beams.logprobs).sum() == pytest.approx(1.0, abs=1e-4)


def test_nothing_allowed_gives_no_beams() -> None:
    trie = Trie.build(np.array([[0, 0, 0], [1, 1, 1]]), SIZES)
    state = BeamState(trie, [5, 5], AllowedRows(2, [np.array([0, 1]), None]))
    nothing, everything = beam_search(TableScorer([1, 1]), state)
    assert len(nothing.codes) == 0
    assert len(everything.codes) == 2


def test_damaged_scores_are_an_error_not_an_answer() -> None:
    trie = Trie.build(np.array([[0, 0], [1, 1]]), (2, 2))
    state = BeamState(trie, [2])
    state.step(torch.full((1, 1, 2), float("nan")))
    state.step(torch.zeros(1, state.logprobs.shape[1], 2))
    with pytest.raises(EngineError, match="not numbers"):
        state.results()


def test_a_width_below_one_is_refused() -> None:
    trie = Trie.build(np.array([[0, 0]]), (1, 1))
    with pytest.raises(ValueError, match="at least 1"):
        BeamState(trie, [3, 0])
