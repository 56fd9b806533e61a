"""The append-only buffer: what it acknowledged is there, whatever happens; what it refused is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import EventsNotStored
from service.events import Event, EventBuffer

REPOSITORY = Path(__file__).parents[3]


def event(number: int, user_id: str = "ann") -> Event:
    return Event(f"e{number}", user_id, f"item-{number}", "view", 1000.0 + number, 2000.0)


def buffer(path: Path, max_bytes: int = 1 << 20) -> EventBuffer:
    return EventBuffer(path, max_bytes=max_bytes)


def content(of: EventBuffer) -> list[Event]:
    return [found for segment in of.take() for found in of.read(segment)]


def test_what_was_appended_is_read_in_order_and_removed(tmp_path):
    events = buffer(tmp_path)
    events.append([event(1), event(2)])
    events.append([event(3, user_id='\u00e4"\n')])
    assert content(events) == [event(1), event(2), event(3, user_id='\u00e4"\n')]
    events.append([event(4)])
    segments = events.take()
    assert len(segments) == 2
    events.remove(segments[0])
    assert content(events) == [event(4)]
    events.remove(segments[1])
    assert events.num_bytes() == 0
    events.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_closed_buffer_leaves_is_adopted_and_a_living_one_is_not(tmp_path):
    first, second = buffer(tmp_path), buffer(tmp_path)
    first.append([event(1)])
    assert content(second) == []
    first.close()
    (segment,) = second.take()
    assert list(second.read(segment)) == [event(1)]
    second.remove(segment)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_line_and_a_damaged_one_are_skipped(tmp_path):
    first = buffer(tmp_path)
    first.append([event(1), event(2)])
    (segment,) = first.take()
    first.close()
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(lines[0] + b'{"event_id": 1}\n\xff\n' + lines[1] + lines[1][:-9])
    assert content(buffer(tmp_path)) == [event(1), event(2)]


def test_the_bound_refuses_and_what_was_there_stays(tmp_path):
    events = buffer(tmp_path, max_bytes=500)
    events.append([event(1)])
    with pytest.raises(EventsNotStored, match="GTIREC_EVENT_BUFFER_BYTES"):
        events.append([event(number) for number in range(10)])
    assert content(events) == [event(1)]


def test_erasing_blanks_the_users_lines_in_place_in_dead_peoples_segments_too(tmp_path):
    dead, events = buffer(tmp_path), buffer(tmp_path)
    dead.append([event(1, "ann"), event(2, "bob")])
    dead.close()
    events.append([event(3, "bob"), event(4, "ann")])
    assert events.erase("ann") == 2
    assert events.erase("ann") == 0
    events.append([event(5, "bob")])
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*.ndjson"))
    assert b"ann" not in files and b"item-1" not in files and b"item-4" not in files
    assert sorted(found.event_id for found in content(events)) == ["e2", "e3", "e5"]


# A real limit of the file size, as a full disk would be: a write stops in the middle.
FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from service.errors import EventsNotStored
from service.events import Event, EventBuffer
event = lambda n: Event(f"e{n}", "ann", f"item-{n}", "view", 1000.0 + n, 2000.0)
buffer = EventBuffer(Path(sys.argv[1]), max_bytes=1 << 20)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
number, refused = 0, 0
while not refused:
    try:
        buffer.append([event(number)])
        print("kept", number)
        number += 1
    except EventsNotStored as error:
        print(error)
        refused = 1
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
buffer.append([event(99)])
print("kept 99")
"""


def test_a_full_disk_is_a_sentence_keeps_what_was_acknowledged_and_is_left_behind(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(REPOSITORY)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    kept = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("kept")]
    assert "cannot be written (File too large); nothing was recorded" in done.stdout
    assert kept[-1] == 99 and len(kept) > 3
    assert [found.event_id for found in content(buffer(tmp_path))] == [f"e{number}" for number in kept]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from service.events import Event, EventBuffer
buffer = EventBuffer(Path(sys.argv[1]), max_bytes=1 << 30)
for number in range(1_000_000):
    buffer.append([Event(f"e{number}", "ann", "item-1", "view", 1.0, 2.0)])
    print(number, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), str(REPOSITORY)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(30)]
    os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    acknowledged += [int(line) for line in rest.split()]
    found = [found.event_id for found in content(buffer(tmp_path))]
    assert found[: len(acknowledged)] == [f"e{number}" for number in acknowledged]
    assert len(found) - len(acknowledged) in (0, 1)  # the one being written
