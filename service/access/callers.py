"""Finds out who sends a request, from the key they sent or did not send."""

from __future__ import annotations

import secrets
import time

from service.access.keys import SCOPES, Caller, Scope, split
from service.access.ring import KeyRing
from service.errors import CatalogueError, Forbidden, Unauthorized

OPEN: frozenset[Scope] = frozenset({"read", "write", "preview"})
ANONYMOUS = Caller("anonymous", OPEN)


class Callers:
    """Knows the keys of the settings and those of Redis.

    Args:
        ring: keys made by `python -m service keys create`.
        api_key: may do everything but administer.
        admin_key: may do everything.
        is_key_needed: nobody gets in without a key.
    """

    def __init__(
        self, ring: KeyRing, *, api_key: str | None, admin_key: str | None, is_key_needed: bool
    ) -> None:
        self.ring = ring
        self.is_key_needed = is_key_needed or api_key is not None
        self._fixed: list[tuple[str, Caller]] = []
        if api_key is not None:
            self._fixed.append((api_key, Caller("GTIREC_API_KEY", OPEN)))
        if admin_key is not None:
            self._fixed.append((admin_key, Caller("GTIREC_ADMIN_KEY", frozenset(SCOPES))))

    def identify(self, given: str | None) -> Caller:
        """The caller behind a key.

        A token that is none of ours is ignored where no key is needed: it may be meant for a gateway.

        Raises:
            Unauthorized: a key is needed and none was sent.
            Forbidden: this key is not valid.
            CatalogueError: it may be valid, but Redis has not been reached since the start.
        """
        if given is None:
            if self.is_key_needed:
                raise Unauthorized("an API key is needed: send `Authorization: Bearer KEY`")
            return ANONYMOUS
        for key, caller in self._fixed:
            if secrets.compare_digest(given.encode("utf-8", "replace"), key.encode()):
                return caller
        if (parts := split(given)) is not None:
            return self._of_ring(*parts)
        if self.is_key_needed:
            raise Forbidden("this API key is not valid")
        return ANONYMOUS

    def _of_ring(self, key_id: str, secret: str) -> Caller:
        if not self.ring.is_known:
            raise CatalogueError("API keys cannot be checked before Redis is reached; come back later")
        key = self.ring.get(key_id)
        if key is None or not key.accepts(secret, time.time()):
            raise Forbidden("this API key is not valid: it was revoked, has expired or never existed")
        return Caller(f"key {key_id}", frozenset(key.scopes), key.rate_per_s)


def require(caller: Caller, scope: Scope) -> None:
    """Check that a caller may do something.

    Raises:
        Forbidden: it may not; says what is missing.
    """
    if scope in caller.scopes:
        return
    if scope == "admin":
        raise Forbidden(
            "this needs a key with the scope admin: `python -m service keys create --scope admin`, or set "
            "GTIREC_ADMIN_KEY"
        )
    raise Forbidden(f"this key lacks the scope {scope}")
