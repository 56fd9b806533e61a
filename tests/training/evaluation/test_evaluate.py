"""Ranking with beams: the serving order, its tie-break, valid items only, and the model's own scores."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decoding.beam_search import Beams
from service.engine.torch_engine import TorchDecoder
from training.evaluation.baselines import spread
from training.evaluation.errors import EvaluationError
from training.evaluation.evaluate import RowDecoder, spell_prompts
from training.evaluation.metrics import NO_ITEM, ranking_metrics
from training.evaluation.serving_order import ServingOrder, serving_order
from training.evaluation.validation import Validation, validation_ndcg


def order_of(world: Any) -> ServingOrder:
    return ServingOrder.build(world.dataset, world.codes, world.levels)


def all_scores(model: Any, prompt: Sequence[int], sids: np.ndarray, levels: Sequence[Any]) -> np.ndarray:
    """Log-probability of every SID by plain forward passes of the model. Shape: (N,)."""
    tokens = sids + np.array([level.first_token_id for level in levels])
    ids = torch.tensor([[*prompt, *sid] for sid in tokens.tolist()])
    with torch.no_grad():
        logprobs = model(ids).logits.float().log_softmax(-1)
    at = len(prompt) - 1
    return sum(logprobs[range(len(ids)), at + level, tokens[:, level]] for level in range(3)).numpy()  # type: ignore[union-attr]


class FakeDecoder:
    """Returns every SID in row order; `damage` changes the beams."""

    def __init__(self, order: ServingOrder, damage: Any = None) -> None:
        self._order = order
        self._damage = damage or (lambda beams: beams)
        self.batches: list[int] = []

    def decode(self, prompts: Sequence[Sequence[int]], widths: Sequence[int]) -> list[Beams]:
        self.batches.append(len(prompts))
        assert len({len(p) for p in prompts}) <= 2, "prompts of like length come together"
        rows = self._order.trie.row_start[-1].numpy().astype(np.int64)
        first, end = rows[:-1], rows[1:]
        beams = Beams(
            codes=self._order.codes_of_row[first].astype(np.int64),
            logprobs=-np.arange(len(first), dtype=np.float32),
            first_row=first,
            end_row=end,
            trie_version=self._order.trie.version,
        )
        cut = [slice(0, width) for width in widths]
        fields = ("codes", "logprobs", "first_row", "end_row")
        return [
            self._damage(replace(beams, **{name: getattr(beams, name)[part] for name in fields}))
            for part in cut
        ]


def rank(world: Any, decoder: Any, order: ServingOrder, width: int = 50) -> Any:
    return RowDecoder(
        decoder=decoder,
        order=order,
        levels=world.levels,
        prompt=world.prompt,
        beam_width=width,
        max_beam_rows=width * 4,
    ).rank(world.dataset.test)


def test_items_stand_in_the_order_of_the_bundle(world: Any, tmp_path: Path) -> None:
    import json

    import polars as pl

    from service.bundle import load_bundle, write_bundle
    from service.decoding.trie import Trie

    (tmp_path / "model").mkdir()
    config = {"architectures": ["Qwen3ForCausalLM"], "vocab_size": 64}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    write_bundle(
        tmp_path / "bundle",
        name="x",
        model_dir=tmp_path / "model",
        codes=world.codes,
        items=world.dataset.items.with_columns(popularity=pl.Series(world.dataset.popularity)),
        levels=world.levels,
        prompt=world.prompt,
        build_trie=Trie.build,
    )
    bundle = load_bundle(tmp_path / "bundle")
    order = order_of(world)
    assert world.dataset.items["item_id"][order.item_of_row].to_list() == bundle.items["item_id"].to_list()
    assert np.array_equal(order.codes_of_row, bundle.semantic_ids)
    assert order.trie.version == bundle.manifest.trie_version
    assert np.array_equal(order.row_of_item[order.item_of_row], np.arange(world.dataset.num_items))


def test_shared_sids_go_by_popularity_then_item_id() -> None:
    import polars as pl

    codes = np.array([[1, 0], [0, 0], [0, 0], [0, 0]])
    order = serving_order(codes, np.array([9, 1, 5, 5]), pl.Series(["a", "b", "z", "c"]))
    assert order.tolist() == [3, 2, 1, 0]


def test_ranks_count_items_and_sids(world: Any) -> None:
    order = order_of(world)
    ranking = rank(world, FakeDecoder(order), order)
    assert ranking.lists.shape == (world.dataset.test.height, 50)
    num_items = world.dataset.num_items
    assert (ranking.lists[:, :num_items] == order.item_of_row).all()
    assert (ranking.lists[:, num_items:] == NO_ITEM).all()
    targets = world.dataset.test["target"].to_numpy()
    assert np.array_equal(ranking.ranks, order.row_of_item[targets] + 1)
    sids = [tuple(sid) for sid in np.unique(world.codes, axis=0).tolist()]
    assert ranking.sid_ranks.tolist() == [sids.index(tuple(world.codes[t].tolist())) + 1 for t in targets]
    assert (ranking.sid_ranks <= ranking.ranks).all()


def test_rows_are_decoded_in_batches(world: Any) -> None:
    order = order_of(world)
    decoder = FakeDecoder(order)
    rank(world, decoder, order)
    assert max(decoder.batches) == 4
    assert sum(decoder.batches) == world.dataset.test.height


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: replace(b, codes=b.codes + 1), "is no item"),
        (lambda b: replace(b, end_row=b.end_row + 1), "is no item"),
        (lambda b: replace(b, first_row=b.first_row - 1), "is no item"),
        (lambda b: replace(b, trie_version="other"), "come from trie other"),
        (lambda b: replace(b, **{n: np.repeat(getattr(b, n)[:1], len(b.codes), 0) for n in FIELDS}), "twice"),
        (lambda b: replace(b, **{n: getattr(b, n)[1:] for n in FIELDS}), "items can be reached"),
    ],
)
def test_what_is_no_item_is_refused(world: Any, damage: Any, said: str) -> None:
    order = order_of(world)
    with pytest.raises(EvaluationError, match=said):
        rank(world, FakeDecoder(order, damage), order)


FIELDS = ("codes", "logprobs", "first_row", "end_row")


def test_codes_of_another_catalogue_are_refused(world: Any) -> None:
    with pytest.raises(EvaluationError, match="run the stage semantic_ids again"):
        ServingOrder.build(world.dataset, world.codes[1:], world.levels)


def test_a_wide_beam_ranks_as_the_model_scores(world: Any, world_model: Any) -> None:
    order = order_of(world)
    ranking = rank(world, TorchDecoder(world_model, order.trie, world.levels), order)
    prompts = spell_prompts(world.dataset.test["history"], order, world.levels, world.prompt)
    sids = np.unique(world.codes, axis=0)
    for row in range(0, world.dataset.test.height, 7):
        scores = all_scores(world_model, prompts[row], sids, world.levels)
        target = world.codes[world.dataset.test["target"][row]]
        at = int(np.flatnonzero((sids == target).all(axis=1))[0])
        assert ranking.sid_ranks[row] == 1 + (scores > scores[at]).sum()


def test_prompts_are_spelled_as_the_service_spells_them(world: Any) -> None:
    order = order_of(world)
    first = np.array([level.first_token_id for level in world.levels])
    prompts = spell_prompts(world.dataset.test["history"], order, world.levels, world.prompt)
    for prompt, history in zip(prompts, world.dataset.test["history"].to_list(), strict=True):
        assert prompt == world.prompt.token_ids(world.codes[history] + first)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60))
def test_any_width_gives_that_many_items(world_maker: Any, width: int) -> None:
    world = world_maker(num_users=5)
    order = order_of(world)
    lists = rank(world, FakeDecoder(order), order, width).lists
    assert ((lists != NO_ITEM).sum(axis=1) == min(width, world.dataset.num_items)).all()


# --- validation -------------------------------------------------------------------------------------


def test_validation_is_the_same_measure_on_validation_rows(world: Any, world_model: Any) -> None:
    rows = spread(world.dataset.valid, 25)
    order = order_of(world)
    ranking = RowDecoder(
        decoder=TorchDecoder(world_model, order.trie, world.levels),
        order=order,
        levels=world.levels,
        prompt=world.prompt,
        beam_width=20,
    ).rank(rows)
    validation = Validation(world.dataset, world.codes, world.levels, world.prompt, max_rows=25)
    assert validation.num_rows == 25
    metrics = validation.metrics(world_model)
    assert metrics == ranking_metrics(ranking.ranks, (1, 5, 10))
    once = validation_ndcg(
        world_model,
        dataset=world.dataset,
        codes=world.codes,
        levels=world.levels,
        prompt=world.prompt,
        max_rows=25,
    )
    assert once == metrics["NDCG@10"]


def test_validation_leaves_the_model_training(world: Any, world_model: Any) -> None:
    world_model.train()
    try:
        Validation(world.dataset, world.codes, world.levels, world.prompt, max_rows=3).metrics(world_model)
        assert world_model.training
    finally:
        world_model.eval()


def test_validation_needs_ten_beams(world: Any) -> None:
    with pytest.raises(ValueError, match="at least 10"):
        Validation(world.dataset, world.codes, world.levels, world.prompt, beam_width=5)
