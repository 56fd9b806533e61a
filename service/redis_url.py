"""What the URL of Redis may look like.

| URL | server |
|---|---|
| `redis://[user:password@]host[:port][/db]` | one server, or an address that follows the primary |
| `rediss://...` | the same over TLS |
| `unix://[user:password@]/path` | one server on this machine |
| `redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]` | the primary that Sentinels name |
| `rediss+sentinel://...` | the same, TLS to Sentinels and Redis |

Sentinels that want a password of their own get it by `?sentinel_password=...` and `sentinel_username`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SENTINEL_PORT = 26379
SINGLE = ("redis://", "rediss://", "unix://")
SENTINEL = ("redis+sentinel://", "rediss+sentinel://")
NO_CLUSTER = (
    "Redis Cluster is not supported: some changes touch keys of several nodes at once. Use one primary with "
    "replicas, by redis+sentinel://host,host/service or by an address that follows the primary"
)


def check_url(url: str) -> None:
    """Refuse what `connect` cannot use.

    Raises:
        ValueError: with a sentence that never repeats the URL, which may hold a password.
    """
    if "cluster" in url.partition("://")[0]:
        raise ValueError(NO_CLUSTER)
    if not url.startswith(SINGLE + SENTINEL):
        raise ValueError(f"the URL of Redis must start with {', '.join(SINGLE + SENTINEL)}")
    if url.startswith(SENTINEL):
        SentinelUrl.parse(url)


@dataclass(frozen=True)
class SentinelUrl:
    """What a redis+sentinel:// URL says.

    Attributes:
        hosts: of the Sentinels.
        service: the name under which they watch the primary.
        for_redis, for_sentinels: how to log in to each, and TLS.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    for_redis: Mapping[str, Any] = field(repr=False)
    for_sentinels: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Read a URL.

        Raises:
            ValueError: a part is missing or wrong.
        """
        parts = urlsplit(url)
        login, _, hosts = parts.netloc.rpartition("@")
        service, _, db = parts.path.strip("/").partition("/")
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if not service:
            raise ValueError("the URL of Sentinels must end in /SERVICE, the name of what they watch")
        if not re.fullmatch(r"\d*", db):
            raise ValueError("the database after /SERVICE must be a number")
        if unknown := options.keys() - {"sentinel_username", "sentinel_password"}:
            raise ValueError(f"the URL of Sentinels has an unknown option {sorted(unknown)[0]!r}")
        tls = {"ssl": True} if parts.scheme.startswith("rediss") else {}
        user, _, password = login.partition(":")
        named = {"username": unquote(user), "password": unquote(password)}
        for_redis = {"db": int(db or 0), **{name: value for name, value in named.items() if value}}
        for_sentinels = {name.removeprefix("sentinel_"): value for name, value in options.items()}
        return cls(
            tuple(map(_host, hosts.split(","))), unquote(service), for_redis | tls, for_sentinels | tls
        )


def _host(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+)(?::(\d+))?", text)
    if found is None:
        raise ValueError("the URL of Sentinels must name them as host:port,host:port")
    return found[1].strip("[]"), int(found[2] or SENTINEL_PORT)
