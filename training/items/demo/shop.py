"""Let the demo shop's users buy: tastes are planted, so that a model can be right.

    python -m training.items.demo.shop OUT_DIR     # writes items.jsonl and interactions.csv

Every user has a style (and stays loyal to its brands four times in five), follows one or two
activities step by step (tent, then pegs, then mat ...), goes on to a related activity when one is
finished, and may read a series of books in order in between. Now and then anybody buys any
bestseller. So the next item depends on the whole history: which threads are open and how far they
are, and whose brands were bought, perhaps in another department.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from training.items.demo.catalogue import Catalogue, make_catalogue
from training.items.item_table import ItemTable
from training.items.splits import EVENT_SCHEMA

_STYLE_WEIGHTS = (20, 14, 12, 12, 13, 12, 7, 10)
_LOYALTY = 0.75
_WHIM = 0.06
_READERS = 0.4
_READING = 0.3
_STAYING = 0.6
_SKIPPING = 0.1
_SHORTEST, _LONGEST, _MEAN_EXTRA = 4, 24, 5.5
_DAY_S = 86_400
_OPENING = datetime(2023, 1, 2, tzinfo=UTC).timestamp()


def make_shop(*, num_users: int, seed: int) -> tuple[ItemTable, pl.DataFrame]:
    """The items, and events with the columns user_id, item (index), time (seconds since 1970).

    Only `random.Random.random()` is drawn from, whose sequence Python promises to keep.
    """
    catalogue = make_catalogue()
    users: list[str] = []
    items: list[int] = []
    times: list[float] = []
    for number in range(num_users):
        chance = random.Random(f"{seed}/{number}")  # noqa: S311 - no secret
        time = _OPENING + chance.random() * 500 * _DAY_S
        for item in _purchases(catalogue, chance):
            users.append(f"user-{number:05d}")
            items.append(item)
            times.append(float(round(time)))
            time += (0.2 + 12 * chance.random()) * _DAY_S
    return catalogue.items, pl.DataFrame(
        {"user_id": users, "item": items, "time": times}, schema=EVENT_SCHEMA
    )


@dataclass
class _User:
    """What a user is after.

    Attributes:
        style: preferred style.
        threads: open activities as [activity, next step].
        series: series and next volume, or None for people who do not read.
    """

    chance: random.Random
    style: int
    threads: list[list[int]] = field(default_factory=list)
    series: list[int] | None = None


def _purchases(catalogue: Catalogue, chance: random.Random) -> Iterator[int]:
    user = _User(chance, style=_weighted(chance, _STYLE_WEIGHTS))
    first = _weighted(chance, [10 / (rank + 4) for rank in range(len(catalogue.activities))])
    user.threads.append([first, _first_step(chance)])
    if chance.random() < 0.5:
        user.threads.append([_related(catalogue, first, chance), _first_step(chance)])
    if chance.random() < _READERS:
        user.series = [int(chance.random() * len(catalogue.book_at)), 0]
    for _ in range(_length(chance)):
        if chance.random() < _WHIM:
            yield _bestseller(catalogue, chance)
        elif user.series and chance.random() < _READING:
            yield _next_book(catalogue, user)
        else:
            yield _next_thing(catalogue, user)


def _next_thing(catalogue: Catalogue, user: _User) -> int:
    chance = user.chance
    if len(user.threads) > 1 and chance.random() >= _STAYING:
        user.threads.reverse()
    thread = user.threads[0]
    activity, step = thread
    steps = catalogue.thing_at[activity]
    style = user.style if chance.random() < _LOYALTY else int(chance.random() * len(steps[0]))
    thread[1] += 2 if chance.random() < _SKIPPING else 1
    if thread[1] >= len(steps):
        user.threads[0] = [_related(catalogue, activity, chance), _first_step(chance)]
    return steps[step][style]


def _next_book(catalogue: Catalogue, user: _User) -> int:
    assert user.series is not None
    series, volume = user.series
    item = catalogue.book_at[series][volume]
    user.series[1] += 1
    if user.series[1] == len(catalogue.book_at[series]):
        same = [other for other, genre in enumerate(catalogue.genres) if genre == catalogue.genres[series]]
        following = same[(same.index(series) + 1) % len(same)]
        user.series = [following, 0]
    return item


def _related(catalogue: Catalogue, activity: int, chance: random.Random) -> int:
    draw = chance.random()
    if draw < 0.6:
        return catalogue.leads_to[activity][0]
    if draw < 0.9:
        return catalogue.leads_to[activity][1]
    return int(chance.random() * len(catalogue.activities))


def _bestseller(catalogue: Catalogue, chance: random.Random) -> int:
    """Any item; a few of them much more often than the rest."""
    num_items = len(catalogue.items)
    rank = int(num_items ** chance.random())  # log-uniform: rank r about 1/r as often as rank 1
    return (rank * 389) % num_items  # 389 and the number of items have no common factor


def _first_step(chance: random.Random) -> int:
    draw = chance.random()
    return 0 if draw < 0.7 else 1 if draw < 0.9 else 2


def _length(chance: random.Random) -> int:
    length = _SHORTEST
    while length < _LONGEST and chance.random() < _MEAN_EXTRA / (_MEAN_EXTRA + 1):
        length += 1
    return length


def _weighted(chance: random.Random, weights: tuple[int, ...] | list[float]) -> int:
    draw = chance.random() * sum(weights)
    for index, weight in enumerate(weights):
        draw -= weight
        if draw < 0:
            return index
    return len(weights) - 1


def write_own_files(directory: Path, *, num_users: int, seed: int) -> None:
    """Write the shop in the layout that people bring their own data in."""
    items, events = make_shop(num_users=num_users, seed=seed)
    frame = items.to_frame()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "items.jsonl").open("w", encoding="utf-8") as file:
        for row in frame.iter_rows(named=True):
            file.write(json.dumps(row | {"metadata": json.loads(row["metadata"])}, ensure_ascii=False) + "\n")
    with (directory / "interactions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("user_id", "item_id", "timestamp"))
        for user_id, item, time in events.iter_rows():
            writer.writerow((user_id, frame["item_id"][item], int(time)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m training.items.demo.shop OUT_DIR")
    write_own_files(Path(sys.argv[1]), num_users=3000, seed=0)
    print(f"items.jsonl and interactions.csv are in {sys.argv[1]}")
