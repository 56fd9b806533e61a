"""`python -m service catalogue ...`: the loader with a progress bar."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio as aioredis
from redis import RedisError
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from service.bundle import load_bundle
from service.catalogue import loader
from service.catalogue.connection import LOADER_TIMEOUT_S, connect
from service.catalogue.embedded import EmbeddedRedis
from service.errors import CatalogueError
from service.settings import Settings


async def load(settings: Settings) -> None:
    """Load `settings.bundle`, print a table.

    Raises:
        BundleError, CatalogueError: with a sentence.
    """
    bundle = load_bundle(settings.bundle, verify=settings.verify_bundle, expected_id=settings.bundle_id)
    async with redis_of(settings) as client:
        with tqdm(total=bundle.manifest.num_items, unit="item", desc="catalogue") as bar:

            def on_progress(done: int, total: int) -> None:
                bar.update(done - bar.n)

            report = await loader.Loader(client, bundle, on_progress).load()
    table = Table("bundle", "items", "semantic IDs", "was there", "seconds")
    counts = (f"{report.num_items:,}", f"{report.num_sids:,}")
    table.add_row(report.bundle_id, *counts, "yes" if report.was_loaded else "no", f"{report.seconds:.1f}")
    Console().print(table)


async def prune(settings: Settings) -> None:
    """Drop old catalogues, print which.

    Raises:
        CatalogueError: Redis cannot be reached.
    """
    async with redis_of(settings) as client:
        dropped = await loader.prune(client)
    Console().print(f"{len(dropped)} deleted {' '.join(dropped)}".strip())


@asynccontextmanager
async def redis_of(settings: Settings) -> AsyncIterator[aioredis.Redis]:
    """The Redis of the settings, for one command.

    Raises:
        CatalogueError: it cannot be reached, or fails meanwhile.
    """
    embedded = None
    if settings.redis_url is None:
        embedded = EmbeddedRedis(settings.data_dir)
        embedded.ensure()
    url = embedded.url if embedded else settings.redis_url.get_secret_value() if settings.redis_url else ""
    client = connect(url, timeout_s=LOADER_TIMEOUT_S)
    try:
        yield client
    except RedisError as error:
        raise CatalogueError(
            f"Redis failed ({type(error).__name__}: {error}); check GTIREC_REDIS_URL and the server's log"
        ) from error
    finally:
        await client.aclose()
        if embedded:
            embedded.close()
