"""`python -m service keys ...`."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from service.access.keys import SCOPES, ApiKey, Scope, new_key
from service.access.ring import delete_key, read_keys, write_key
from service.catalogue.commands import redis_of
from service.errors import NotFound, RequestError
from service.settings import Settings

SECONDS_PER_DAY = 24 * 3600


async def create(
    settings: Settings,
    name: str,
    scopes: list[str],
    *,
    expires_days: float | None,
    rate_per_s: float | None,
) -> None:
    """Make a key and print it, once.

    Raises:
        RequestError: a scope is unknown.
        CatalogueError: Redis cannot be reached.
    """
    if unknown := set(scopes) - set(SCOPES):
        raise RequestError(f"--scope must be read, write, preview or admin, got {min(unknown)!r}")
    granted: tuple[Scope, ...] = tuple(scope for scope in SCOPES if scopes.count(scope))
    lifetime_s = None if expires_days is None else SECONDS_PER_DAY * expires_days
    key, text = new_key(name, granted, expires_in_s=lifetime_s, rate_per_s=rate_per_s)
    async with redis_of(settings) as client:
        await write_key(client, key)
    _show_once(text)
    if settings.api_key is None and not settings.require_key:
        Console(stderr=True).print(
            "note: the service asks nobody for a key until GTIREC_REQUIRE_KEY=true is set"
        )


async def list_keys(settings: Settings) -> None:
    """Print all keys; secrets are not known."""
    async with redis_of(settings) as client:
        keys = await read_keys(client)
    table = Table("id", "name", "scopes", "made", "expires", "requests/s", "old secret until")
    for key in sorted(keys.values(), key=lambda key: key.created_at):
        table.add_row(
            key.key_id,
            key.name,
            " ".join(key.scopes),
            _day(key.created_at),
            _day(key.expires_at),
            "-" if key.rate_per_s is None else f"{key.rate_per_s:g}",
            _day(_future(key.previous_until)),
        )
    Console().print(table)


async def revoke(settings: Settings, key_id: str) -> None:
    """Delete a key; running services forget it within seconds.

    Raises:
        NotFound: there is none of this id.
    """
    async with redis_of(settings) as client:
        if not await delete_key(client, key_id):
            raise _unknown(key_id)
    Console().print(f"{key_id} is revoked")


async def rotate(settings: Settings, key_id: str, *, keep_old_hours: float) -> None:
    """Give a key a new secret and print it, once.

    Raises:
        NotFound: there is none of this id.
    """
    async with redis_of(settings) as client:
        key: ApiKey | None = (await read_keys(client)).get(key_id)
        if key is None:
            raise _unknown(key_id)
        key, text = key.rotated(keep_old_s=3600 * keep_old_hours)
        await write_key(client, key)
    _show_once(text)


def _show_once(text: str) -> None:
    Console().print(text, soft_wrap=True, highlight=False)
    Console(stderr=True).print("this is the only time it is shown: only its hash is kept")


def _unknown(key_id: str) -> NotFound:
    return NotFound(f"there is no key {key_id}; `python -m service keys list` shows all")


def _day(moment: float | None) -> str:
    return "-" if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")


def _future(moment: float | None) -> float | None:
    return moment if moment is not None and moment > time.time() else None
