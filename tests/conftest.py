"""Fixtures shared by all tests: a small bundle without a model, a Redis server, a fake engine, the app."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before anything imports it: two cores are shared by every worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import numpy as np
import polars as pl
import pytest

REPOSITORY = Path(__file__).parents[1]

# No example is judged by its time: two cores are shared.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio only."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GTIREC_")]:
        monkeypatch.delenv(name)


# --- a bundle -------------------------------------------------------------------------------------

CODEBOOK_SIZES = (4, 4, 4)
FIRST_TOKEN_ID = 10


def small_items(num_items: int = 40) -> tuple[pl.DataFrame, np.ndarray]:
    """Items and SIDs: item n is the n-th triple of base-4 digits, but items 0 and 1 share theirs."""
    numbers = np.arange(num_items)
    numbers[1] = 0
    codes = np.stack([numbers // 16 % 4, numbers // 4 % 4, numbers % 4], axis=1)
    colours, things = ["red", "blue", "green", "white"], ["lamp", "desk", "chair", "shelf", "mirror"]
    items = pl.DataFrame(
        {
            "item_id": [f"item-{n}" for n in range(num_items)],
            "title": [
                f"{colours[n % 4].title()} {things[n // 4 % 5]} {'<b>No.</b>' if n == 39 else 'No.'} {n}"
                for n in range(num_items)
            ],
            "description": [f"A {colours[n % 4]} thing." if n % 2 else "" for n in range(num_items)],
            "metadata": [json.dumps({"colour": colours[n % 4]}) for n in range(num_items)],
            "popularity": [(7 * n) % num_items for n in range(num_items)],
        },
        schema_overrides={"popularity": pl.Int64},
    )
    return items, codes


def write_tokenizer(directory: Path) -> dict[str, Path]:
    """An encoder that knows the words of `small_items`, with codebooks; name below `tokenizer/` -> file."""
    from service.semantic_ids.codebooks import Codebooks
    from service.semantic_ids.item_text import ItemTextConfig
    from service.semantic_ids.tfidf_encoder import TfidfEncoder

    words = ["red", "blue", "green", "white", "lamp", "desk", "chair", "shelf", "mirror", "thing", "new"]
    rng = np.random.default_rng(0)
    encoder = TfidfEncoder(
        vocabulary={word: column for column, word in enumerate(words)},
        max_words=1,
        idf=np.ones(len(words), dtype=np.float32),
        components=rng.normal(size=(len(words), 6)).astype(np.float32),
        taste_map=np.zeros((6, 0), dtype=np.float32),
    )
    encoder.save(directory / "encoder")
    (directory / "encoder" / "text.json").write_text(ItemTextConfig().model_dump_json())
    books = [rng.normal(scale=0.8**level, size=(4, 6)).astype(np.float32) for level in range(3)]
    Codebooks(tuple(books)).save(directory / "codebooks.safetensors")
    levels = [{"codebook_size": size} for size in CODEBOOK_SIZES]
    (directory / "levels.json").write_text(json.dumps(levels))
    return {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def small_bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a valid bundle whose model holds no weights; for everything but decoding."""
    return write_small_bundle(tmp_path_factory.mktemp("small"), *small_items())


def write_small_bundle(root: Path, items: pl.DataFrame, codes: np.ndarray, name: str = "small") -> Path:
    """Write a bundle without weights below `root`."""
    from service.bundle import Level, PromptTemplate, write_bundle
    from service.decoding.trie import Trie

    model = root / "model"
    model.mkdir()
    config = {"architectures": ["Qwen3ForCausalLM"], "vocab_size": 64}
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    levels = [
        Level(letter="abc"[level], codebook_size=size, first_token_id=FIRST_TOKEN_ID + 4 * level)
        for level, size in enumerate(CODEBOOK_SIZES)
    ]
    write_bundle(
        root / "bundle",
        name=name,
        model_dir=model,
        codes=codes,
        items=items,
        levels=levels,
        prompt=PromptTemplate(style="sequence", history_limit=5, prefix_token_ids=(1,)),
        build_trie=Trie.build,
        tokenizer_files=write_tokenizer(root / "tokenizer"),
    )
    return root / "bundle"


@pytest.fixture(scope="session")
def small_bundle(small_bundle_dir: Path) -> Any:
    """The same, opened."""
    from service.bundle import load_bundle

    return load_bundle(small_bundle_dir)


# --- an engine without a model --------------------------------------------------------------------


@dataclass
class FakeEngine:
    """Implements the engine protocol: real trie, real beam search, made-up log-probabilities.

    The scorer prefers the codes of the history's last item, so that answers depend on the request.

    Attributes:
        delay_s: time that every decode takes.
        start_error: raised by `start`.
        decode_error: raised by `decode`.
        requests: everything asked so far.
        num_cancelled: decodes that were cancelled.
    """

    bundle: Any
    name: str = "fake"
    delay_s: float = 0.0
    start_error: Exception | None = None
    decode_error: Exception | None = None
    is_alive: bool = False
    is_closed: bool = False
    num_cancelled: int = 0
    requests: list[Any] = field(default_factory=list)
    spaces: Any = None

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error
        self.is_alive = True

    async def decode(self, request: Any) -> Any:
        from service.errors import EngineDead

        self.requests.append(request)
        give_up_at = asyncio.get_running_loop().time() + self.delay_s
        try:
            while asyncio.get_running_loop().time() < give_up_at:
                if not self.is_alive:
                    break
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if not self.is_alive:
            raise EngineDead("the fake engine is dead")
        if self.decode_error is not None:
            raise self.decode_error
        return self._search(request)

    def kill(self) -> None:
        """As if its process were gone."""
        self.is_alive = False

    async def close(self) -> None:
        self.is_alive = False
        self.is_closed = True

    def _search(self, request: Any) -> Any:
        import torch

        from service.decoding.beam_search import BeamState, beam_search

        manifest = self.bundle.manifest
        space = self._held().of(request.trie_version)
        last = np.array(request.prompt_token_ids[-manifest.num_levels :]) - np.array(manifest.first_token_ids)

        def score(level: int, num_beams: int) -> torch.Tensor:
            size = manifest.codebook_sizes[level]
            logits = -torch.arange(size, dtype=torch.float32).roll(int(last[level]))
            return torch.log_softmax(logits, dim=0).expand(1, num_beams, size)

        class Scorer:
            def first(self) -> torch.Tensor:
                return score(0, 1)

            def advance(self, parents: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
                return score(level + 1, codes.shape[1])

        allowed = space.allow([request.exclude_rows], [request.filter])
        state = BeamState(space.trie, [request.beam_width], allowed, [request.num_items])
        return beam_search(Scorer(), state)[0]

    def _held(self) -> Any:
        from service.decoding.search_space import SearchSpace, SearchSpaces

        if self.spaces is None:
            self.spaces = SearchSpaces(SearchSpace.open(self.bundle.path))
        return self.spaces

    async def load_catalogue(self, directory: Path) -> None:
        from service.decoding.search_space import SearchSpace

        space = SearchSpace.open(directory)
        space.check(self.bundle.manifest.codebook_sizes)
        self._held().install(space)

    async def hide_rows(self, rows: Any, trie_version: str) -> None:
        self._held().of(trie_version).hide(rows)


@pytest.fixture
def fake_engine(small_bundle: Any) -> FakeEngine:
    """An unstarted fake engine on the small bundle."""
    return FakeEngine(small_bundle)


# --- Redis ----------------------------------------------------------------------------------------


class RedisServer:
    """A real server on a unix socket, started, stopped and started again by a test.

    Args:
        data_dir: directory of its own.
    """

    def __init__(self, data_dir: Path) -> None:
        from service.catalogue.embedded import EmbeddedRedis

        self._embedded = EmbeddedRedis(data_dir)

    @property
    def url(self) -> str:
        return self._embedded.url

    def start(self) -> None:
        self._embedded.ensure()

    @property
    def pid(self) -> int:
        import redis

        with redis.Redis.from_url(self.url) as client:
            return int(client.info("server")["process_id"])

    def flush(self) -> None:
        import redis

        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def kill(self) -> None:
        """SIGKILL, and wait until the socket is dead."""
        import contextlib
        import signal
        import time

        import redis

        os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url) as client:
            while True:
                client.ping()
                time.sleep(0.01)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for the session; tests that write use `clean_redis`."""
    from service.catalogue.embedded import find_server_binary
    from service.errors import CatalogueError

    try:
        find_server_binary()
    except CatalogueError as error:
        pytest.skip(str(error))
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server._embedded.close()


@pytest.fixture
def clean_redis(redis_server: RedisServer) -> RedisServer:
    """The session's server, running and empty."""
    redis_server.start()
    redis_server.flush()
    return redis_server


# --- the app --------------------------------------------------------------------------------------


@dataclass
class RunningApp:
    """The app with its lifespan entered, and an HTTP client on it."""

    app: Any
    client: Any
    engine: FakeEngine

    @property
    def services(self) -> Any:
        return self.app.state.services

    async def until(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        """Wait for a condition of the test."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_ready(self) -> None:
        await self.until(lambda: not self.services.not_ready_reasons())


StartApp = Callable[..., Any]


@pytest.fixture
def start_app(small_bundle: Any, clean_redis: RedisServer, tmp_path: Path) -> StartApp:
    """`async with start_app(engine=..., **settings) as running:`; ready unless `wait=False`."""
    import httpx

    from service.app import create_app
    from service.settings import Settings

    @asynccontextmanager
    async def start(
        *,
        engine: FakeEngine | None = None,
        bundle: Any = small_bundle,
        make_engine: Callable[[], Any] | None = None,
        wait: bool = True,
        on_fatal: Callable[[str], None] = lambda reason: None,
        **settings: Any,
    ) -> AsyncIterator[RunningApp]:
        engine = engine or FakeEngine(bundle)
        # A patient look-up: the machine may be busy, and no test of these stops Redis.
        values = {"redis_url": clean_redis.url, "data_dir": tmp_path, "redis_timeout_s": 5, **settings}
        app = create_app(
            Settings(**values),
            bundle=bundle,
            make_engine=make_engine or (lambda: engine),
            on_fatal=on_fatal,
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        async with app.router.lifespan_context(app), client:
            running = RunningApp(app, client, engine)
            if wait:
                await running.until_ready()
            yield running

    return start


@pytest.fixture
def serve_app(
    small_bundle: Any, fake_engine: FakeEngine, clean_redis: RedisServer, tmp_path: Path
) -> Callable[..., Any]:
    """`with serve_app(**settings) as url:` the same app behind a real port, in a thread, ready."""
    import threading
    import time

    import uvicorn

    from service.app import create_app
    from service.settings import Settings

    @contextmanager
    def serve(**settings: Any) -> Iterator[str]:
        values = {"redis_url": clean_redis.url, "data_dir": tmp_path, "redis_timeout_s": 5, **settings}
        app = create_app(
            Settings(**values),
            bundle=small_bundle,
            make_engine=lambda: fake_engine,
            engine_of=lambda bundle: lambda: FakeEngine(bundle),
        )
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        give_up_at = time.monotonic() + 20
        while not (server.started and not app.state.services.not_ready_reasons()):
            assert time.monotonic() < give_up_at, app.state.services.not_ready_reasons()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)

    return serve
