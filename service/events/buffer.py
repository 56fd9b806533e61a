"""An append-only file for events that Redis cannot take now; what is in it survives a power cut.

Every process writes segments into a directory of its own below the data directory, locked as long as
it lives. Segments of processes that died are adopted by whoever replays next. A line that a crash cut
short was never acknowledged and is skipped.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.errors import EventsNotStored
from service.events.event import Event

ABANDONED_S = 60.0  # an empty directory younger than this may belong to a process that just starts

log = logging.getLogger(__name__)


class EventBuffer:
    """Segments of lines, one event each. Every method blocks and may be called from any thread.

    Args:
        directory: shared by the processes of one machine; made if missing.
        max_bytes: bound on what this process keeps; more is refused.
    """

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self._root = directory
        self._max_bytes = max_bytes
        self._own: Path | None = None
        self._lock_file: int | None = None
        self._segment: int | None = None  # descriptor of the segment being written
        self._segment_bytes = 0
        self._guard = threading.Lock()

    def append(self, events: Sequence[Event]) -> None:
        """Write events and wait until they are on the disk: all of them or none.

        Raises:
            EventsNotStored: the disk is full or fails, or the buffer has reached its bound.
        """
        data = b"".join(event.to_json().encode() + b"\n" for event in events)
        with self._guard:
            if self._own is not None and self._num_bytes() + len(data) > self._max_bytes:
                raise EventsNotStored(
                    "Redis is away and the event buffer has reached GTIREC_EVENT_BUFFER_BYTES "
                    f"({self._max_bytes}); nothing was recorded, come back later"
                )
            try:
                self._write(data)
            except OSError as error:
                self._undo()
                raise EventsNotStored(
                    "Redis is away and the event buffer in GTIREC_DATA_DIR cannot be written "
                    f"({_reason(error)}); nothing was recorded, free space there or come back later"
                ) from error

    def take(self) -> list[Path]:
        """Close the current segment; returns every finished one, those of dead processes included."""
        with self._guard:
            if self._segment is not None:
                os.close(self._segment)
                self._segment, self._segment_bytes = None, 0
            return sorted(self._own_segments()) + sorted(self._orphaned())

    def read(self, segment: Path) -> Iterator[Event]:
        """Events of a segment, in the order they were written."""
        with segment.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    log.warning("the last line of an event segment was cut short by a crash and is skipped")
                elif line.strip():
                    try:
                        yield Event.from_json(line)
                    except ValueError:
                        log.error("a line of the event buffer is damaged and is skipped")

    def remove(self, segment: Path) -> None:
        """Delete a segment whose events lie in Redis."""
        with self._guard:
            segment.unlink(missing_ok=True)
            _sync_directory(segment.parent)
            if segment.parent != self._own and not list(segment.parent.glob("*.ndjson")):
                shutil.rmtree(segment.parent, ignore_errors=True)

    def erase(self, user_id: str) -> int:
        """Overwrite every line of a user with blanks, in place: that needs no space on a full disk.

        Returns:
            How many events were erased.

        Raises:
            EventsNotStored: the disk fails.
        """
        with self._guard:
            try:
                segments = [*self._own_segments(), *self._orphaned()]
                return sum(_blank(segment, user_id) for segment in segments)
            except OSError as error:
                raise EventsNotStored(
                    f"the event buffer in GTIREC_DATA_DIR cannot be written ({_reason(error)}), so the "
                    "user is not erased from it; repeat the request once the disk works"
                ) from error

    def num_bytes(self) -> int:
        """Bytes in this process's segments."""
        with self._guard:
            return self._num_bytes()

    def close(self) -> None:
        """Let go of the directory; what is in it waits for the next process. Idempotent."""
        with self._guard:
            if self._segment is not None:
                os.close(self._segment)
                self._segment = None
            if self._own is not None and not list(self._own.glob("*.ndjson")):
                shutil.rmtree(self._own, ignore_errors=True)
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None
            self._own = None

    def _write(self, data: bytes) -> None:
        if self._own is None:
            self._claim()
        if self._segment is None:
            assert self._own is not None
            path = self._own / f"{len(self._own_segments()):06d}-{uuid.uuid4().hex[:8]}.ndjson"
            self._segment = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._segment_bytes = 0
            _sync_directory(self._own)
        left = memoryview(data)
        while left:
            left = left[os.write(self._segment, left) :]
        os.fsync(self._segment)
        self._segment_bytes += len(data)

    def _undo(self) -> None:
        """Cut off what a failed write left behind, so that nothing unacknowledged is replayed."""
        if self._segment is not None:
            try:
                os.ftruncate(self._segment, self._segment_bytes)
                os.fsync(self._segment)
            except OSError:
                log.exception("the event buffer could not be repaired; a later start skips the torn line")
                os.close(self._segment)
                self._segment = None

    def _claim(self) -> None:
        own = self._root / uuid.uuid4().hex
        own.mkdir(parents=True, mode=0o700)
        self._lock_file = os.open(own / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        _sync_directory(self._root)
        self._own = own

    def _own_segments(self) -> list[Path]:
        return [] if self._own is None else list(self._own.glob("*.ndjson"))

    def _orphaned(self) -> list[Path]:
        found: list[Path] = []
        for lock in self._root.glob("*/lock"):
            if lock.parent == self._own:
                continue
            try:
                descriptor = os.open(lock, os.O_RDWR)
            except FileNotFoundError:  # adopted and done by another process meanwhile
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                segments = list(lock.parent.glob("*.ndjson"))
                found += segments
                if not segments and time.time() - lock.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(lock.parent, ignore_errors=True)
            except BlockingIOError:
                continue  # its process lives and replays it itself
            finally:
                os.close(descriptor)
        return found

    def _num_bytes(self) -> int:
        return sum(segment.stat().st_size for segment in self._own_segments())


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _blank(segment: Path, user_id: str) -> int:
    num_blanked = 0
    with segment.open("r+b") as file:
        start = 0
        for line in iter(file.readline, b""):
            if line.strip() and _is_of(line, user_id):
                file.seek(start)
                file.write(b" " * (len(line) - line.endswith(b"\n")))
                file.seek(start + len(line))
                num_blanked += 1
            start += len(line)
        file.flush()
        os.fsync(file.fileno())
    return num_blanked


def _is_of(line: bytes, user_id: str) -> bool:
    try:
        return Event.from_json(line).user_id == user_id
    except ValueError:
        # A damaged line is of no use to anybody; keeping it could keep the user.
        return True


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
