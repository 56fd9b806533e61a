"""Both vLLM engines as the service runs them, with processes of their own: answers, death, close."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

pytest.importorskip("vllm")

from service.decoding.search_space import SearchSpace, write_catalogue
from service.decoding.trie import Trie
from service.engine.protocol import DecodeRequest, Engine
from service.engine.torch_engine import TorchDecoder
from service.engine.vllm_logits import VllmLogitsEngine
from service.engine.vllm_messages import UnknownCacheLayout
from service.engine.vllm_options import VllmOptions, WorkerSettings
from service.engine.vllm_pooling import VllmPoolingEngine
from service.errors import CatalogueError, EngineDead, EngineError, RequestError, StaleCatalogue

pytestmark = [pytest.mark.vllm, pytest.mark.xdist_group("vllm")]  # one worker starts all engines

# Which process of the engine is killed: the worker below the core, or the core itself.
ENGINES = {"pooling": (VllmPoolingEngine, -1), "logits": (VllmLogitsEngine, 0)}
OPTIONS = VllmOptions(cpu_kv_cache_gib=0.1, threads=2)


def children() -> set[int]:
    """Process ids below this one, without Python's own helper."""
    found = psutil.Process().children(recursive=True)
    return {p.pid for p in found if p.is_running() and "resource_tracker" not in "".join(p.cmdline())}


class Running:
    """A started engine and the event loop it lives on, in a thread of its own."""

    def __init__(self, tiny: Any, engine: Any, victim: int, before: set[int]) -> None:
        self.tiny, self.engine, self.victim, self.before = tiny, engine, victim, before
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        spaces, levels = WorkerSettings.of(tiny.bundle, OPTIONS).open_catalogue()
        self.reference = TorchDecoder(tiny.model, spaces.newest.trie, levels)

    def __call__(self, work: Coroutine[Any, Any, Any], timeout_s: float = 240) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def end(self) -> None:
        self(self.engine.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module", params=ENGINES)
def running(request: pytest.FixtureRequest, tiny_bundle: Callable[[str], Any]) -> Iterator[Running]:
    engine_class, victim = ENGINES[request.param]
    tiny = tiny_bundle("qwen3")
    before = children()
    running = Running(tiny, engine_class(tiny.bundle, OPTIONS), victim, before)
    try:
        running(running.engine.start())
        yield running
    finally:
        running.end()


def test_concurrent_requests_equal_the_torch_engine(running: Running) -> None:
    tiny, engine = running.tiny, running.engine
    assert isinstance(engine, Engine) and engine.is_alive
    prompts = [tiny.prompt(n) for n in (1, tiny.longest_prompt, 33, 64, 9)]
    widths = [500, 10, 3, 25, 1]
    excluded = [None, np.arange(0, 100, 3), None, None, np.array([5])]
    expected = running.reference.decode(prompts, widths, excluded)
    requests = [DecodeRequest(p, w, f"r{w}", e) for p, w, e in zip(prompts, widths, excluded, strict=True)]

    async def all_at_once() -> Any:
        return await asyncio.gather(*(engine.decode(request) for request in requests))

    for beams, reference in zip(running(all_at_once()), expected, strict=True):
        assert beams.codes.tolist() == reference.codes.tolist()
        assert beams.first_row.tolist() == reference.first_row.tolist()
        assert beams.end_row.tolist() == reference.end_row.tolist()
        assert beams.logprobs == pytest.approx(reference.logprobs, abs=1e-4)
        assert beams.trie_version == tiny.bundle.manifest.trie_version


def test_a_cancelled_request_stops_and_the_next_is_answered(running: Running) -> None:
    tiny, engine = running.tiny, running.engine

    async def scenario() -> Any:
        doomed = [
            asyncio.create_task(engine.decode(DecodeRequest(tiny.prompt(90, seed=n), 200, f"c{n}")))
            for n in range(6)
        ]
        await asyncio.sleep(0.01)
        for task in doomed:
            task.cancel()
        outcomes = await asyncio.gather(*doomed, return_exceptions=True)
        assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) >= 5
        return await engine.decode(DecodeRequest(tiny.prompt(4), 2, "next"))

    assert len(running(scenario()).codes) == 2


def test_the_catalogue_is_exchanged_between_two_requests(running: Running, tmp_path: Path) -> None:
    tiny, engine, reference = running.tiny, running.engine, running.reference
    before = tiny.bundle.manifest.trie_version
    codes, sizes = tiny.bundle.semantic_ids.astype(np.int64), tiny.bundle.manifest.codebook_sizes
    fewer = Trie.build(codes[::3], sizes)
    number = pl.DataFrame({"number": range(len(codes))})
    write_catalogue(tmp_path / "fewer", fewer, number[::3])
    write_catalogue(tmp_path / "damaged", Trie.build(codes[::2], sizes), number[::2])
    file = tmp_path / "damaged" / "trie" / "child_code_2.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    prompt, hidden = tiny.prompt(21), np.array([0, 7, 3])

    def decode(version: str | None = None) -> Any:
        return running(engine.decode(DecodeRequest(prompt, 500, "swap", trie_version=version)))

    running(engine.load_catalogue(tmp_path / "fewer"))
    reference.spaces.install(SearchSpace.open(tmp_path / "fewer"))
    assert decode().trie_version == fewer.version
    assert decode().codes.tolist() == reference.decode([prompt], [500])[0].codes.tolist()
    assert decode(before).trie_version == before  # a request that was on its way
    with pytest.raises(CatalogueError, match="damaged|holds"):
        running(engine.load_catalogue(tmp_path / "damaged"))
    with pytest.raises(CatalogueError, match="is no catalogue"):
        running(engine.load_catalogue(tmp_path))
    assert decode().trie_version == fewer.version
    running(engine.hide_rows(hidden, fewer.version))
    reached = decode()
    assert not np.isin(hidden, reached.first_row[reached.end_row - reached.first_row == 1]).any()
    reference.spaces.newest.hide(hidden)
    assert reached.codes.tolist() == reference.decode([prompt], [500])[0].codes.tolist()
    for version in ("0" * 16, fewer.version[::-1]):
        with pytest.raises(StaleCatalogue):
            decode(version)
        with pytest.raises(StaleCatalogue):
            running(engine.hide_rows(hidden, version))


def test_a_prompt_that_is_too_long_is_refused_before_vllm_sees_it(running: Running) -> None:
    with pytest.raises(RequestError, match="tokens"):
        running(running.engine.decode(DecodeRequest([1] * 1000, 2, "long")))


def test_a_killed_process_fails_requests_at_once_and_close_leaves_nothing(running: Running) -> None:
    tiny, engine = running.tiny, running.engine
    processes = engine._host._processes
    assert len(processes) >= 2 and {p.pid for p in processes} <= children()

    async def scenario() -> float:
        victim = processes[running.victim]
        victim.send_signal(signal.SIGSTOP)  # so that the requests are still waiting when it dies
        waiting = [
            asyncio.create_task(engine.decode(DecodeRequest(tiny.prompt(50, seed=n), 50, f"d{n}")))
            for n in range(4)
        ]
        await asyncio.sleep(0.1)
        victim.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineDead] * 4
        return time.monotonic() - killed

    assert running(scenario()) < 3
    assert not engine.is_alive
    started = time.monotonic()
    with pytest.raises(EngineDead):
        running(engine.decode(DecodeRequest([1], 1, "late")))
    assert time.monotonic() - started < 0.1
    running(engine.close())
    running(engine.close())
    assert children() <= running.before


def test_an_unreadable_cache_makes_the_pooling_engine_start_again_with_the_stash(
    tiny_bundle: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Unreadable(VllmPoolingEngine):
        readers: list[str] = []  # noqa: RUF012

        async def _start_once(self) -> None:
            self.readers.append(self.options.cache_reader)
            if self.options.cache_reader == "paged":
                raise UnknownCacheLayout("the layout of this machine is unknown")

    engine = Unreadable(tiny_bundle("qwen3").bundle, OPTIONS)
    asyncio.run(engine.start())
    assert engine.readers == ["paged", "stash"]
    assert "the layout of this machine is unknown; starting again without prefix cache" in caplog.text


def test_a_start_that_fails_says_so_and_leaves_nothing(tiny_bundle: Callable[[str], Any]) -> None:
    before = children()
    engine = VllmPoolingEngine(tiny_bundle("qwen3").bundle, VllmOptions(tensor_parallel_size=2))
    with pytest.raises(EngineError, match="one device, not 2; serve this bundle with engine=vllm_logits"):
        asyncio.run(engine.start())
    assert not engine.is_alive and children() <= before
