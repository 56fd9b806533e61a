"""The logits processor without an engine: its arithmetic, and how it follows both kinds of batch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality, _load_logitsprocs_by_fqcns
from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

from service.decoding.trie import Trie
from service.engine.vllm_arguments import LOGITS_PROCESSOR
from service.engine.vllm_logits_processor import TrieLogitsProcessor
from service.engine.vllm_options import VllmOptions, WorkerSettings
from service.engine.vllm_token_trie import NODE_KEY, TokenTrie

VOCAB_SIZE = 120


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Callable[[str], Any]) -> Any:
    return tiny_bundle("qwen3")


@pytest.fixture(scope="module")
def config(tiny: Any) -> Any:
    """As much of a VllmConfig as the processor reads."""
    return SimpleNamespace(
        speculative_config=None,
        additional_config=WorkerSettings.of(tiny.bundle, VllmOptions()).to_config(),
        scheduler_config=SimpleNamespace(max_num_seqs=2),
    )


def expected_row(tiny: Any, row: torch.Tensor, prefix: list[int]) -> torch.Tensor:
    """The row a prefix of token ids allows, spelled out."""
    tokens = tiny.bundle.manifest.tokens_of(tiny.sids)
    matching = tokens[(tokens[:, : len(prefix)] == prefix).all(axis=1)]
    if len(prefix) >= tokens.shape[1] or not len(matching):
        return row
    masked = torch.full_like(row, float("-inf"))
    allowed = torch.from_numpy(np.unique(matching[:, len(prefix)]))
    masked[allowed] = row.log_softmax(-1)[allowed]
    return masked


def test_both_loaders_of_vllm_accept_the_class() -> None:
    assert _load_logitsprocs_by_fqcns([LOGITS_PROCESSOR]) == [TrieLogitsProcessor]
    assert _load_v2_logitsprocs_by_fqcns([LOGITS_PROCESSOR]) == [TrieLogitsProcessor]


@pytest.mark.parametrize("node", [-1, "0", 1.5, True])
def test_a_node_that_makes_no_sense_is_refused(node: object) -> None:
    with pytest.raises(ValueError, match="must be a trie node"):
        TrieLogitsProcessor.validate_params(SamplingParams(extra_args={NODE_KEY: node}))
    TrieLogitsProcessor.validate_params(SamplingParams(extra_args={NODE_KEY: 3}))
    TrieLogitsProcessor.validate_params(SamplingParams())


def test_speculative_decoding_is_refused(config: Any) -> None:
    broken = SimpleNamespace(**vars(config) | {"speculative_config": object()})
    with pytest.raises(ValueError, match="speculative"):
        TrieLogitsProcessor(broken, torch.device("cpu"), False)


@given(
    codes=st.lists(
        st.tuples(*(st.integers(0, 3) for _ in range(3))), min_size=1, max_size=30, unique=True
    ).map(sorted),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_masking_equals_set_membership(codes: list[tuple[int, ...]], data: st.DataObject) -> None:
    first_tokens = (20, 3, 11)
    trie = TokenTrie(Trie.build(np.array(codes), (4, 4, 4)), first_tokens)
    tokens = np.array(codes) + first_tokens
    prefixes = [
        tokens[data.draw(st.integers(0, len(codes) - 1))][: data.draw(st.integers(0, 3))].tolist()
        for _ in range(5)
    ]
    nodes = []
    for prefix in prefixes:
        node = 0
        for token in prefix:
            node = int(trie.children(np.array([node]), np.array([token]))[0])
        nodes.append(node)
    rows = np.array(data.draw(st.permutations(range(7)))[:5])
    logits = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    masked = trie.mask(logits.clone(), rows, np.array(nodes))
    fake = SimpleNamespace(
        sids=np.array(codes), bundle=SimpleNamespace(manifest=SimpleNamespace(tokens_of=lambda _: tokens))
    )
    for row in range(7):
        where = np.flatnonzero(rows == row)
        expected = expected_row(fake, logits[row], prefixes[where[0]]) if len(where) else logits[row]
        torch.testing.assert_close(masked[row], expected)

    def __init__(self) -> None:
        self.rows: list[tuple[bool, list[int]] | None] = []


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=25))
@settings(max_examples=60, deadline=None)
def test_v1_follows_any_sequence_of_updates(tiny: Any, config: Any, choices: list[int]) -> None:
    processor = TrieLogitsProcessor(config, torch.device("cpu"), False)
    tokens = tiny.bundle.manifest.tokens_of(tiny.sids).tolist()
    batch: dict[int, tuple[list[int] | None, list[int]]] = {}  # row -> (SID it walks, output so far)
    for choice in choices:
        kind, choice = choice % 4, choice // 4
        added, removed, moved = [], [], []
        if kind == 0 or not batch:
            row = choice % 6
            is_constrained, sid = choice % 5 != 0, tokens[choice % len(tokens)]
            output: list[int] = []
            params = SamplingParams(
                max_tokens=1 + choice % 3, extra_args={NODE_KEY: 0} if is_constrained else None
            )
            batch[row] = (sid if is_constrained else None, output)
            added = [(row, params, None, output)]
        elif kind == 1:
            row = sorted(batch)[choice % len(batch)]
            del batch[row]
            removed = [row]
        elif kind == 2:
            source, target = sorted(batch)[choice % len(batch)], choice % 7
            if source != target:
                is_swap = choice % 2 == 0
                direction = MoveDirectionality.SWAP if is_swap else MoveDirectionality.UNIDIRECTIONAL
                displaced = batch.pop(target, None)
                batch[target] = batch.pop(source)
                if is_swap and displaced is not None:
                    batch[source] = displaced
                moved = [(source, target, direction)]
        else:
            for sid, output in batch.values():
                output.append(sid[len(output)] if sid is not None and len(output) < 3 else 0)
        processor.update_state(BatchUpdate(8, removed, added, moved) if added or removed or moved else None)
        logits = torch.randn(8, VOCAB_SIZE, generator=torch.Generator().manual_seed(choice))
        result = processor.apply(logits.clone())
        for row in range(8):
            sid, output = batch.get(row, (None, []))
            if sid is not None and len(output) <= 3 and _may_still_grow(processor, row, output):
                torch.testing.assert_close(result[row], expected_row(tiny, logits[row], output))
            elif sid is None:
                assert torch.equal(result[row], logits[row])


def _may_still_grow(processor: TrieLogitsProcessor, row: int, output: list[int]) -> bool:
    """A request of one token ends with it; what its row holds afterwards does not matter."""
    return not output or processor._num_walked[row] >= 0


def test_v2_reads_the_tokens_it_needs_from_the_device(tiny: Any, config: Any) -> None:
    sid = tiny.bundle.manifest.tokens_of(tiny.sids)[40].tolist()
    history = torch.zeros(6, 32, dtype=torch.int32)
    history[4, 5:7] = torch.tensor(sid[:2])
    states = SimpleNamespace(
        prompt_len=SimpleNamespace(np=np.array([9, 9, 9, 3, 5, 9])),
        all_token_ids=SimpleNamespace(gpu=history),
    )
    processor = TrieLogitsProcessor(config, states)
    assert not processor.add_request(1, SamplingParams(max_tokens=3))
    assert processor.add_request(4, SamplingParams(max_tokens=3, extra_args={NODE_KEY: 0}))
    assert processor.add_request(3, SamplingParams(max_tokens=1, extra_args={NODE_KEY: 2}))
    processor.apply_staged_writes()
    logits = torch.randn(3, VOCAB_SIZE)
    # Three rows in batch order; slot 4 has its prompt of 5 tokens and two tokens of output.
    context = SimpleNamespace(idx_mapping_np=np.array([1, 4, 3]), seq_lens_upper_bound_np=np.array([9, 7, 3]))
    result = processor.apply(logits.clone(), context)
    assert torch.equal(result[0], logits[0])
    torch.testing.assert_close(result[1], expected_row(tiny, logits[1], sid[:2]))
    second_child_of_the_root = np.unique(tiny.bundle.manifest.tokens_of(tiny.sids)[:, 0])[1]
    torch.testing.assert_close(result[2], expected_row(tiny, logits[2], [second_child_of_the_root]))
    # One token later; and slot 3 is taken over by a request that is not ours.
    history[4, 7] = sid[2]
    assert not processor.add_request(3, SamplingParams(max_tokens=4))
    context = SimpleNamespace(idx_mapping_np=np.array([3, 4]), seq_lens_upper_bound_np=np.array([3, 8]))
    result = processor.apply(logits[:2].clone(), context)
    assert torch.equal(result, logits[:2])  # after a whole SID a row is left alone
