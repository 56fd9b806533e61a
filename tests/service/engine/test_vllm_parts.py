"""The parts of the vLLM engines that need no vLLM running: messages, options, refusals, cache layouts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.beam_search import Beams
from service.engine import vllm_norms
from service.engine.protocol import DecodeRequest
from service.engine.vllm_arguments import check_poolable
from service.engine.vllm_cache import PagedReader, StashReader, measure_layout
from service.engine.vllm_messages import (
    UNKNOWN_LAYOUT,
    RequestExtras,
    UnknownCacheLayout,
    check_request,
    pack_beams,
    pack_refusal,
    unpack_reply,
)
from service.engine.vllm_options import VllmOptions, WorkerSettings
from service.engine.vllm_plugin import POOLING_CLASSES
from service.engine.vllm_version import check_version, prepare_environment, usable_cpus
from service.errors import BundleError, EngineError, RequestError

# --- version and environment ----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.31.0", "0.33.1", "0.3.2", "1.0"])
def test_another_version_is_refused_with_what_to_install(version: str) -> None:
    with pytest.raises(EngineError, match=rf"0\.32\.x, found {version}; install vllm==0\.32\.0"):
        check_version(version)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.3", "0.32.1.dev4+gabc"])
def test_the_supported_version_is_accepted(version: str) -> None:
    check_version(version)


def test_the_environment_is_prepared_but_nothing_of_the_users_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-3")
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    prepare_environment(threads=3)
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_waiting_threads_look_for_a_while_unless_the_user_says_how_they_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    prepare_environment()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    prepare_environment()
    assert int(os.environ["GOMP_SPINCOUNT"]) > 0


@pytest.mark.parametrize(
    ("quota", "most"), [("100000 100000", 1), ("max 100000", 10**6), ("nonsense", 10**6)]
)
def test_a_containers_quota_bounds_the_threads(tmp_path: Path, quota: str, most: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert 1 <= usable_cpus(file) <= most
    assert usable_cpus(tmp_path / "absent") == usable_cpus(tmp_path / "absent too")


def test_vllm_finds_the_plugin_and_it_may_run_twice() -> None:
    pytest.importorskip("vllm")
    from vllm import ModelRegistry

    points = [p for p in entry_points(group="vllm.general_plugins") if p.name == "gtirec"]
    assert points, "the project must be installed (pip install -e .), vLLM finds it by entry point"
    points[0].load()()
    points[0].load()()
    assert set(POOLING_CLASSES.values()) <= set(ModelRegistry.get_supported_archs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norms_on_a_cpu_are_vllms_own(dtype: torch.dtype) -> None:
    pytest.importorskip("vllm")
    from vllm import ir
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("only on a CPU are the norms ours to choose")
    current_platform.import_ir_kernels()
    vllm_norms.register()
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(5, 3, 64, generator=generator).to(dtype) for _ in range(2))
    weight = torch.rand(64, generator=generator).to(dtype)
    strided = torch.randn(5, 200, generator=generator).to(dtype)[:, :192].view(5, 3, 64)  # a part of q/k/v
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    norm, add_norm = ir.ops.rms_norm, ir.ops.fused_add_rms_norm
    for inputs in (x, strided):
        expected = norm.impls["native"].impl_fn(inputs, weight, 1e-6)
        with norm.set_priority([vllm_norms.PROVIDER, "native"]):
            assert norm.dispatch(inputs, weight, 1e-6).provider == vllm_norms.PROVIDER
            torch.testing.assert_close(norm(inputs, weight, 1e-6), expected, **tolerance)
            assert norm.dispatch(inputs, weight.double(), 1e-6).provider == "native"
    normed, total = add_norm.impls["native"].impl_fn(x.clone(), residual.clone(), weight, 1e-6)
    with add_norm.set_priority([vllm_norms.PROVIDER, "native"]):
        assert add_norm.dispatch(x, residual, weight, 1e-6).provider == vllm_norms.PROVIDER
        found = add_norm.maybe_inplace(x.clone(), residual.clone(), weight, 1e-6)
        assert add_norm.dispatch(x.mT, residual, weight, 1e-6).provider == "native"
    torch.testing.assert_close(found[0], normed, **tolerance)
    torch.testing.assert_close(found[1], total, **tolerance)


# --- messages -------------------------------------------------------------------------------------


@given(
    num_levels=st.integers(1, 6),
    num_beams=st.integers(0, 5),
    version=st.from_regex("[0-9a-f]{16}", fullmatch=True),
    data=st.data(),
)
def test_beams_survive_the_border(num_levels: int, num_beams: int, version: str, data: st.DataObject) -> None:
    numbers = st.integers(0, 2**31 - 1)
    row = st.lists(numbers, min_size=num_beams, max_size=num_beams)
    logprob = st.floats(-1e4, 0, width=32)
    beams = Beams(
        codes=np.array([data.draw(row) for _ in range(num_levels)], dtype=np.int64).T,
        logprobs=np.array(data.draw(st.lists(logprob, min_size=num_beams, max_size=num_beams)), np.float32),
        first_row=np.array(data.draw(row), dtype=np.int64),
        end_row=np.array(data.draw(row), dtype=np.int64),
        trie_version=version,
    )
    back = unpack_reply(pack_beams(beams))
    for name in ("codes", "logprobs", "first_row", "end_row"):
        sent, received = getattr(beams, name), getattr(back, name)
        assert received.dtype == sent.dtype and np.array_equal(received, sent)
    assert back.trie_version == version


def test_a_refusal_arrives_as_its_error() -> None:
    with pytest.raises(EngineError, match="h\u00e9las"):
        unpack_reply(pack_refusal(1, "h\u00e9las"))
    with pytest.raises(UnknownCacheLayout, match="AMX"):
        unpack_reply(pack_refusal(UNKNOWN_LAYOUT, "AMX"))


@given(st.integers(1, 10**6), st.none() | st.lists(st.integers(0, 2**40), max_size=20), st.none() | st.text())
def test_extras_survive_the_border(width: int, rows: list[int] | None, version: str | None) -> None:
    packed = RequestExtras(width, None if rows is None else np.array(rows, dtype=np.int64), version).pack()
    back = RequestExtras.unpack(packed)
    assert back.beam_width == width
    assert back.trie_version == version
    assert (back.exclude_rows.tolist() if back.exclude_rows is not None else []) == (rows or [])


@pytest.mark.parametrize("packed", [None, {}, {"beam_width": 0}, {"beam_width": "4"}])
def test_extras_of_somebody_else_are_refused(packed: dict[str, Any] | None) -> None:
    with pytest.raises(EngineError, match="beam_width"):
        RequestExtras.unpack(packed)


def test_a_request_that_cannot_be_answered_is_refused_at_once(tiny_bundle: Callable[[str], Any]) -> None:
    bundle = tiny_bundle("qwen3").bundle
    for prompt in ([], [1] * 500):
        with pytest.raises(RequestError, match=rf"has {len(prompt)} tokens, .* 1 to 122"):
            check_request(DecodeRequest(prompt, 3, "r"), bundle, 150)
    for prompt in ([1, -1], [1, bundle.manifest.vocab_size]):
        with pytest.raises(RequestError, match="outside the vocabulary of 120"):
            check_request(DecodeRequest(prompt, 3, "r"), bundle, 150)
    with pytest.raises(ValueError, match="beam_width"):
        check_request(DecodeRequest([1], 0, "r"), bundle, 150)
    for rows in ([3, 3], [4, 2], [-1, 5], [150]):
        with pytest.raises(ValueError, match="exclude_rows"):
            check_request(DecodeRequest([1], 3, "r", np.array(rows)), bundle, 150)
    check_request(DecodeRequest([1], 3, "r", np.array([0, 7])), bundle, 150)


# --- options and refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"block_size": 48},
        {"cpu_kv_cache_gib": 0.0},
        {"max_beam_rows": -1},
        {"gpu_memory_utilization": 1.5},
        {"cache_reader": "magic"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        VllmOptions(**options)


def test_the_worker_opens_the_bundle_that_the_service_opened(
    tiny_bundle: Callable[[str], Any], tmp_path: Path
) -> None:
    bundle = tiny_bundle("qwen3").bundle
    sent = json.loads(json.dumps(WorkerSettings.of(bundle, VllmOptions()).to_config()))
    received = WorkerSettings.from_config(sent)
    spaces, levels = received.open_catalogue()
    assert spaces.newest.trie.version == bundle.manifest.trie_version and levels == bundle.manifest.levels
    with pytest.raises(BundleError, match="holds bundle .*restart"):
        WorkerSettings.from_config({"gtirec": vars(received) | {"bundle_id": "0" * 16}}).open_catalogue()
    with pytest.raises(BundleError, match="cannot be read"):
        WorkerSettings.from_config({"gtirec": vars(received) | {"bundle": str(tmp_path)}}).open_catalogue()
    for config in ({}, None, {"gtirec": {"bundle": "x"}}):
        with pytest.raises(EngineError, match="additional_config"):
            WorkerSettings.from_config(config)


@pytest.mark.parametrize(
    ("architecture", "config", "options", "reason"),
    [
        ("GPT2LMHeadModel", {}, {}, "not GPT2LMHeadModel"),
        ("Qwen3ForCausalLM", {}, {"tensor_parallel_size": 2}, "one device, not 2"),
        ("MistralForCausalLM", {"sliding_window": 4096}, {}, "full attention only"),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 8}, {}, "full attention only"),
        ("LlamaForCausalLM", {"layer_types": ["sliding_attention"]}, {}, "full attention only"),
        ("Qwen2ForCausalLM", {"dual_chunk_attention_config": {"x": 1}}, {}, "dual_chunk"),
        ("MistralForCausalLM", {"llama_4_scaling": {"beta": 1}}, {}, "llama_4_scaling"),
    ],
)
def test_what_pooling_would_run_wrongly_is_refused_with_a_pointer(
    architecture: str, config: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EngineError, match=rf"{reason}.*; serve this bundle with engine=vllm_logits"):
        check_poolable(architecture, config, VllmOptions(**options))


def test_a_window_that_is_switched_off_is_no_reason_to_refuse() -> None:
    config = {"use_sliding_window": False, "sliding_window": 4096}
    check_poolable("Qwen2ForCausalLM", config, VllmOptions())
    check_poolable("MistralForCausalLM", {"sliding_window": None}, VllmOptions())


# --- cache layouts --------------------------------------------------------------------------------

HEADS, BLOCK, DIM = 2, 4, 6


def plain(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As on a GPU: key and value side by side per token. Shape: (S, d) twice -> (S * 2 * d,)."""
    return torch.cat([key, value], dim=-1).flatten()


def transposed_keys(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As on x86: all keys, channel by channel, then all values."""
    return torch.cat([key.T.flatten(), value.flatten()])


def packed_pairs(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As AMX likes it: pairs of channels (keys) and of tokens (values) interleaved."""
    pairs = key.view(BLOCK, DIM // 2, 2).transpose(0, 1)
    return torch.cat([pairs.flatten(), value.view(BLOCK // 2, 2, DIM).transpose(1, 2).flatten()])


def lossy(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As with a quantised cache."""
    return torch.cat([key // 2, value // 2]).flatten()


class FakeAttention:
    """An attention layer that stores blocks in some layout."""

    def __init__(self, pack: Callable[..., torch.Tensor], num_blocks: int = 9) -> None:
        self.num_kv_heads, self.head_size, self.layer_name = HEADS, DIM, "layer"
        self.kv_cache = torch.full((num_blocks, HEADS, BLOCK, 2 * DIM), float("nan"))
        self.impl = self
        self._pack = pack

    def do_kv_cache_update(self, layer: Any, key: Any, value: Any, cache: Any, slots: Any) -> None:
        for head in range(HEADS):
            cache[0, head] = self._pack(key[:, head], value[:, head]).view(BLOCK, 2 * DIM)

    def store(self, block: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self.do_kv_cache_update(self, key, value, self.kv_cache[block : block + 1], None)


@pytest.mark.parametrize("pack", [plain, transposed_keys, packed_pairs])
def test_any_layout_is_measured_and_read(pack: Callable[..., torch.Tensor]) -> None:
    attention = FakeAttention(pack)
    table = torch.tensor([[5, 2, 8], [3, 0, 0], [7, 1, 0]], dtype=torch.int32)
    keys, values = torch.randn(2, 3, 3 * BLOCK, HEADS, DIM).unbind()
    for request, num_blocks in enumerate((3, 1, 2)):
        for n in range(num_blocks):
            at = slice(n * BLOCK, (n + 1) * BLOCK)
            attention.store(int(table[request, n]), keys[request, at], values[request, at])
    reader = PagedReader([attention])
    reader.observe({"layer": SimpleNamespace(block_table=table)})
    assert reader.has_step
    lengths = [11, 3]
    (read_keys,), (read_values,) = reader.read([0, 2], [0, 0], lengths)
    for read, written in ((read_keys, keys), (read_values, values)):
        assert read.shape == (2, HEADS, 11, DIM)
        for position, (request, length) in enumerate(zip([0, 2], lengths, strict=True)):
            assert torch.equal(read[position, :, :length], written[request, :length].transpose(0, 1))
        assert (read[1, :, 3:] == 0).all()  # what lies behind a prompt is never seen, not even NaN
    reader.observe(None)
    assert not reader.has_step


def test_a_layout_that_changes_numbers_is_unknown() -> None:
    with pytest.raises(UnknownCacheLayout, match="does not keep"):
        measure_layout(FakeAttention(lossy))
    odd = FakeAttention(plain)
    odd.kv_cache = odd.kv_cache.view(9, -1)
    with pytest.raises(UnknownCacheLayout, match="shape"):
        measure_layout(odd)
    refusing = FakeAttention(plain)
    refusing.impl = object()
    with pytest.raises(UnknownCacheLayout, match="cannot be written"):
        measure_layout(refusing)


def test_the_stash_needs_a_pass_through_python() -> None:
    attention = torch.nn.Module()
    attention.num_kv_heads, attention.head_size = HEADS, DIM
    reader = StashReader([attention])
    reader.observe({"layer": object()})
    with pytest.raises(EngineError, match="eager"):
        reader.read([0], [0], [3])
