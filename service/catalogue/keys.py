"""Every Redis key of the project, in one place.

`gtirec:v1:...` outlives a bundle; `gtirec:b:<bundle_id>:...` is one bundle's catalogue, never changed
once it is complete. Every value is JSON. Item keys carry no hash tag, so that a cluster spreads them.

| key | value |
|---|---|
| `gtirec:v1:active` | {"bundle_id", "loaded_at"}: the catalogue that was completed last |
| `gtirec:v1:previous` | the same, for the one before; kept for rollback |
| `gtirec:v1:user:{<hash>}:events` | hash: event_id -> event; <hash> is one-way, of the user_id |
| `gtirec:v1:user:{<hash>}:times` | sorted set: event_id by milliseconds since 1970 |
| `gtirec:v1:user:{<hash>}:erased` | milliseconds since 1970 of DELETE /users/{id}; expires |
| `gtirec:v1:keys` | hash: key id -> API key with the hash of its secret |
| `gtirec:b:<id>:meta` | {"num_items", "num_sids", "loaded_at"}: present = complete and verified |
| `gtirec:b:<id>:lock` | {"owner"}: who is loading it; expires |
| `gtirec:b:<id>:item:<item_id>` | {"row", "sid"}: item row in the bundle and its codes |
| `gtirec:b:<id>:sid:<codes>` | [{"row", "item_id", "title", "metadata", "popularity"}], tie-break order |
| `gtirec:b:<id>:text:<item_id>` | {"description"}; only items that have one |
| `gtirec:b:<id>:{live}:head` | `version:nonce` of the last change since the bundle was made |
| `gtirec:b:<id>:{live}:log` | stream: one entry per commit, id `version-0`, fields after, nonce, c0, c1... |
| `gtirec:b:<id>:{live}:state` | {"head", "key"}: the log up to there, folded; older entries are trimmed |
| `gtirec:b:<id>:{live}:state:<version>` | list: that state in pieces, each a list of changes |
| `gtirec:b:<id>:{live}:moved` | bundle_id that took over; present = no more changes here |
| `gtirec:b:<id>:{live}:paused` | 1: the last changes are being carried over, writers wait; expires |
| `gtirec:b:<id>:{live}:mirrored` | `bundle_id@head`: it says what that log says up to there |
| `gtirec:v1:active_bundle` | {"bundle_id", "previous", "configured", "at"}: what all replicas should serve |
| `gtirec:v1:next_bundle` | {"bundle_id", "owner"}: what they should load beside it; expires |
| `gtirec:v1:replicas` | hash: replica -> what it serves, and when it last said so |
| `gtirec:v1:experiment` | the experiment that is running; see service/rollout/experiment.py |
| `gtirec:v1:experiments` | hash: experiment_id -> experiment, ended ones too |
| `gtirec:v1:experiment:<id>:counts` | hash: `variant:bucket:what` -> count of answers or events |

The log is the truth about live items; the keys above it hold the bundle's items only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ACTIVE = "gtirec:v1:active"
PREVIOUS = "gtirec:v1:previous"
ACTIVE_BUNDLE = "gtirec:v1:active_bundle"
NEXT_BUNDLE = "gtirec:v1:next_bundle"
REPLICAS = "gtirec:v1:replicas"
EXPERIMENT = "gtirec:v1:experiment"
EXPERIMENTS = "gtirec:v1:experiments"
ALL_BUNDLES = "gtirec:b:*:meta"
API_KEYS = "gtirec:v1:keys"


def experiment_counts(experiment_id: str) -> str:
    """What an experiment has counted."""
    return f"{EXPERIMENT}:{experiment_id}:counts"


@dataclass(frozen=True)
class UserKeys:
    """Keys of one user; the braces keep them on one node of a cluster.

    Attributes:
        user_hash: hash of the user's id, so that key names, which show up in logs, name nobody.
    """

    user_hash: str

    @property
    def events(self) -> str:
        """What the user did."""
        return f"gtirec:v1:user:{{{self.user_hash}}}:events"

    @property
    def times(self) -> str:
        """Order of the events."""
        return f"gtirec:v1:user:{{{self.user_hash}}}:times"

    @property
    def erased(self) -> str:
        """When the user was erased."""
        return f"gtirec:v1:user:{{{self.user_hash}}}:erased"


def all_user_events() -> str:
    """Pattern of the events keys of all users."""
    return UserKeys("*").events


@dataclass(frozen=True)
class BundleKeys:
    """Keys of one bundle's catalogue."""

    bundle_id: str

    @property
    def prefix(self) -> str:
        """What all of them start with."""
        return f"gtirec:b:{self.bundle_id}:"

    @property
    def meta(self) -> str:
        """Completeness marker."""
        return f"{self.prefix}meta"

    @property
    def lock(self) -> str:
        """Held by the one replica that loads."""
        return f"{self.prefix}lock"

    def item(self, item_id: str) -> str:
        """Row and SID of an item."""
        return f"{self.prefix}item:{item_id}"

    def sid(self, codes: Iterable[int]) -> str:
        """Items that carry a semantic ID. `codes`: Shape: (L,)."""
        return f"{self.prefix}sid:{'.'.join(str(int(code)) for code in codes)}"

    def text(self, item_id: str) -> str:
        """Description of an item."""
        return f"{self.prefix}text:{item_id}"


@dataclass(frozen=True)
class LiveKeys:
    """Keys of the changes since a bundle was made; the braces keep them on one node of a cluster."""

    bundle_id: str

    @property
    def head(self) -> str:
        """How far the log goes."""
        return self._named("head")

    @property
    def log(self) -> str:
        """The changes, in order."""
        return self._named("log")

    @property
    def state(self) -> str:
        """Where the folded state is."""
        return self._named("state")

    def state_at(self, version: int) -> str:
        """The folded state."""
        return self._named(f"state:{version}")

    @property
    def moved(self) -> str:
        """Which bundle took over."""
        return self._named("moved")

    @property
    def paused(self) -> str:
        """Present = the last changes are being carried over."""
        return self._named("paused")

    @property
    def mirrored(self) -> str:
        """Up to where another bundle's log was taken over into this one."""
        return self._named("mirrored")

    def _named(self, name: str) -> str:
        return f"gtirec:b:{self.bundle_id}:{{live}}:{name}"


def bundle_id_of(meta_key: str) -> str:
    """The bundle_id inside a `meta` key."""
    return meta_key.split(":")[2]
