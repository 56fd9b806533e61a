"""The update log in Redis: every change to a bundle's items, in one order, for every replica.

A commit names the head that it was made on top of and is refused if another one came first, so that
whoever decides a semantic ID has seen every decision before. Readers check the same chain: what does
not follow from where they stand (Redis lost data, the log was trimmed) makes them read the folded state
again. Commit, fold and restore are one script each: Redis does all of it or nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as aioredis

from service.catalogue.keys import LiveKeys
from service.catalogue.live_items import Change, Head

PIECE = 500  # changes per field of an entry, or per element of the folded state
FOLD_AFTER = 1_000  # entries after which the log is folded
KEPT_ENTRIES = 200  # left in a folded log for replicas that lag a little

# KEYS: head, log, moved, paused, mirrored. ARGV: expected head, nonce, version, expected and new value of
# mirrored ("" and "": leave it alone), piece...
_COMMIT = """
if ARGV[5] ~= '' and (redis.call('GET', KEYS[5]) or '') ~= ARGV[4] then return {'behind', '0:'} end
local moved = redis.call('GET', KEYS[3])
if moved then return {'moved', moved} end
if redis.call('EXISTS', KEYS[4]) == 1 then return {'behind', '0:'} end
local head = redis.call('GET', KEYS[1]) or '0:'
if head ~= ARGV[1] then return {'behind', head} end
local version = tonumber(ARGV[3])
local entry = {'after', head, 'nonce', ARGV[2]}
for i = 6, #ARGV do
  table.insert(entry, 'c' .. (i - 6))
  table.insert(entry, ARGV[i])
end
redis.call('XADD', KEYS[2], version .. '-0', unpack(entry))
head = version .. ':' .. ARGV[2]
redis.call('SET', KEYS[1], head)
if ARGV[5] ~= '' then redis.call('SET', KEYS[5], ARGV[5]) end
return {'done', head}
"""

# KEYS: mirrored. ARGV: expected and new value.
_STEP = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""

# KEYS: head, log, state, the list that was filled. ARGV: head of the state, first version kept, pointer.
# Refused if somebody folded further meanwhile.
_FOLD = """
local pointer = redis.call('GET', KEYS[3])
if pointer then
  local old = cjson.decode(pointer)
  if tonumber(string.match(old['head'], '^%d+')) >= tonumber(string.match(ARGV[1], '^%d+')) then
    redis.call('DEL', KEYS[4])
    return 0
  end
  redis.call('DEL', old['key'])
end
redis.call('PERSIST', KEYS[4])
redis.call('SET', KEYS[3], ARGV[3])
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2] .. '-0')
if not redis.call('GET', KEYS[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
return 1
"""


@dataclass(frozen=True)
class Entry:
    """One commit as it stands in the log. `pieces` are JSON lists of changes."""

    after: Head
    head: Head
    pieces: tuple[bytes, ...]

    def changes(self) -> Iterator[list[Change]]:
        """What it changed, piece by piece."""
        for piece in self.pieces:
            yield [Change.from_json(value, self.head.version) for value in json.loads(piece)]


@dataclass(frozen=True)
class Carried:
    """Changes that come from the log of another bundle; they are taken even where that one took over.

    Attributes:
        above: the new version is larger than this one (of the other bundle, so that versions grow).
        step: what `mirrored` must be and what it becomes; None where nobody else carries meanwhile.
    """

    above: int = 0
    step: tuple[str, str] | None = None


@dataclass(frozen=True)
class Moved:
    """A commit was refused: another bundle took over."""

    bundle_id: str


class UpdateLog:
    """The log of one bundle. Every method may raise what Redis raises.

    Args:
        bundle_id: whose items.
    """

    def __init__(self, bundle_id: str) -> None:
        self.bundle_id = bundle_id
        self.keys = LiveKeys(bundle_id)

    async def head(self, client: aioredis.Redis) -> Head:
        """How far the log goes."""
        return Head.parse(await client.get(self.keys.head))

    async def commit(
        self,
        client: aioredis.Redis,
        after: Head,
        changes: Sequence[Change],
        *,
        carried: Carried | None = None,
    ) -> Head | Moved | None:
        """Append, all or nothing.

        Args:
            after: the head that the changes were worked out on.
            carried: where they come from, if not from a caller.

        Returns:
            The new head; None if the log went on meanwhile and the changes must be worked out again.
        """
        pieces = [_dumps([change.to_json() for change in part]) for part in _parts(changes)]
        above, step = (carried.above, carried.step or ("", "")) if carried else (0, ("", ""))
        ours = Head(max(after.version, above) + 1, uuid.uuid4().hex[:12])
        moved = self.keys.moved + (":ignored" if carried else "")
        keys = [self.keys.head, self.keys.log, moved, self.keys.paused, self.keys.mirrored]
        about = [str(after), ours.nonce, str(ours.version), *step]
        outcome, value = await client.eval(_COMMIT, len(keys), *keys, *about, *pieces)
        if outcome == b"moved":
            return Moved(value.decode())
        # The client sends a command again if the connection broke before the answer: then the one that
        # "came first" may be our own.
        return ours if outcome == b"done" or await self._holds(client, ours) else None

    async def _holds(self, client: aioredis.Redis, head: Head) -> bool:
        identity = f"{head.version}-0"
        found: Any = await client.xrange(self.keys.log, min=identity, max=identity)
        return any(_entry(*raw).head == head for raw in found)

    async def mirrored(self, client: aioredis.Redis) -> str:
        """Which log this one was made to agree with, and how far: `bundle_id@head`; "" for none."""
        found: Any = await client.get(self.keys.mirrored)
        return found.decode() if found else ""

    async def step(self, client: aioredis.Redis, before: str, after: str) -> bool:
        """Move `mirrored` where nothing had to be changed; False if it is not where it was expected."""
        return bool(await client.eval(_STEP, 1, self.keys.mirrored, before, after))

    async def read(self, client: aioredis.Redis, after: Head, count: int = 100) -> list[Entry] | None:
        """The next commits.

        Returns:
            At most `count` entries, each following the one before, the first following `after`; None if
            the log does not lead on from `after`.
        """
        pipeline = client.pipeline(transaction=True)
        pipeline.get(self.keys.head)
        pipeline.xrange(self.keys.log, min=f"({after.version}-0", count=count)
        head, raw = await pipeline.execute()
        newest = Head.parse(head)
        entries = [_entry(identity, fields) for identity, fields in raw]
        if not entries:
            return [] if newest == after else None
        chain = [after, *(entry.head for entry in entries)]
        follows = all(entry.after == before for before, entry in zip(chain, entries, strict=False))
        return entries if follows else None

    async def wait(self, client: aioredis.Redis, after: Head, timeout_ms: int) -> None:
        """Returns as soon as there is more than `after`, or after the timeout."""
        await client.xread({self.keys.log: f"{after.version}-0"}, count=1, block=timeout_ms)

    async def folded(self, client: aioredis.Redis) -> tuple[Head, list[dict[str, Any]]]:
        """The folded state, from which the log leads on; the beginning if nothing was folded yet."""
        while True:
            if (pointer := await client.get(self.keys.state)) is None:
                return Head(), []
            about = json.loads(pointer)
            values: list[dict[str, Any]] = []
            for place in range(about["pieces"]):
                if (piece := await client.lindex(about["key"], place)) is None:
                    break  # folded again meanwhile
                values += json.loads(piece)
            else:
                return Head.parse(about["head"]), values

    async def num_entries(self, client: aioredis.Redis) -> int:
        """Entries in the log."""
        return int(await client.xlen(self.keys.log))

    async def fold(self, client: aioredis.Redis, head: Head, dumped: Iterable[dict[str, Any]]) -> None:
        """Store the state at `head` and trim the log before it. Two at once do no harm.

        Also restores a log that Redis has lost altogether: readers then go on from `head`.
        """
        key = self.keys.state_at(head.version) + ":" + uuid.uuid4().hex[:12]
        num_pieces = 0
        for part in _parts(dumped):
            await client.rpush(key, _dumps(part))
            await client.expire(key, 3600)  # until the script makes it stay
            num_pieces += 1
        pointer = _dumps({"head": str(head), "key": key, "pieces": num_pieces})
        keys = [self.keys.head, self.keys.log, self.keys.state, key]
        first_kept = max(1, head.version - KEPT_ENTRIES)
        await client.eval(_FOLD, len(keys), *keys, str(head), str(first_kept), pointer)


def _entry(identity: bytes, fields: dict[bytes, bytes]) -> Entry:
    head = Head(int(identity.split(b"-")[0]), fields[b"nonce"].decode())
    pieces = tuple(fields[b"c%d" % place] for place in range(len(fields) - 2))
    return Entry(Head.parse(fields[b"after"]), head, pieces)


def _parts(values: Iterable[Any]) -> Iterator[list[Any]]:
    part: list[Any] = []
    for value in values:
        part.append(value)
        if len(part) == PIECE:
            yield part
            part = []
    if part:
        yield part


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
