"""API keys as they are kept: a secret is shown once, when it is made, and only its hash is stored.

A key reads `gtirec_<id>_<secret>`. The secret has 256 random bits, so that a plain SHA-256 protects it:
slow password hashes exist for secrets that can be guessed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Scope = Literal["read", "write", "preview", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "preview", "admin")

_PATTERN = re.compile(r"gtirec_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request, as far as we know.

    Attributes:
        name: for rate limits and log lines: a key's id, never a secret.
        scopes: what they may do.
        rate_per_s: requests a second, or None for no bound.
    """

    name: str
    scopes: frozenset[Scope]
    rate_per_s: float | None = None


class ApiKey(BaseModel):
    """One key in Redis.

    Attributes:
        secret_hash: SHA-256 of the secret, hex.
        previous_hash: that of the secret before the last rotation, valid until `previous_until`.
        created_at, expires_at, previous_until: seconds since 1970.
        rate_per_s: bound of its own; None takes the service's.
    """

    model_config = ConfigDict(frozen=True)

    key_id: str
    name: str
    scopes: tuple[Scope, ...] = Field(min_length=1)
    secret_hash: str
    created_at: float
    expires_at: float | None = None
    rate_per_s: float | None = Field(default=None, gt=0)
    previous_hash: str | None = None
    previous_until: float | None = None

    def accepts(self, secret: str, now: float) -> bool:
        """Whether a secret opens this key now."""
        if self.expires_at is not None and now >= self.expires_at:
            return False
        given = _hash(secret)
        is_current = secrets.compare_digest(given, self.secret_hash)
        if self.previous_hash is None or self.previous_until is None or now >= self.previous_until:
            return is_current
        return is_current | secrets.compare_digest(given, self.previous_hash)

    def rotated(self, *, keep_old_s: float) -> tuple[ApiKey, str]:
        """The key with a new secret; the old one works for `keep_old_s` more seconds.

        Returns:
            The key, and what its owner must send from now on.
        """
        secret = secrets.token_urlsafe(32)
        changes = {
            "secret_hash": _hash(secret),
            "previous_hash": self.secret_hash,
            "previous_until": time.time() + keep_old_s,
        }
        return self.model_copy(update=changes), f"gtirec_{self.key_id}_{secret}"


def new_key(
    name: str,
    scopes: tuple[Scope, ...],
    *,
    expires_in_s: float | None = None,
    rate_per_s: float | None = None,
) -> tuple[ApiKey, str]:
    """Make a key.

    Returns:
        The key, and what its owner must send: this is the only time that it is known.
    """
    secret, key_id, now = secrets.token_urlsafe(32), secrets.token_hex(4), time.time()
    key = ApiKey(
        key_id=key_id,
        name=name,
        scopes=scopes,
        secret_hash=_hash(secret),
        created_at=now,
        expires_at=None if expires_in_s is None else now + expires_in_s,
        rate_per_s=rate_per_s,
    )
    return key, f"gtirec_{key_id}_{secret}"


def split(text: str) -> tuple[str, str] | None:
    """Id and secret of what a caller sent; None if it does not look like a key of ours."""
    match = _PATTERN.fullmatch(text)
    return (match[1], match[2]) if match else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
