"""Make the items of the demo shop: 112 kinds of things in 8 styles, and 16 series of 6 books.

Every department has one brand per style, so that a brand says the same about its buyer as its
sister brands in other departments do. Nothing here is random: the shop is always the same.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from training.items.item_table import ItemTable

_ORDINALS = ("one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Catalogue:
    """The items, and where each stands in the plan behind them.

    Attributes:
        items: all items.
        activities: names of the activities.
        leads_to: for every activity the activities that people turn to afterwards, likeliest first.
        thing_at: thing_at[activity][step][style] is an item index; steps are in the order in which
            people buy.
        book_at: book_at[series][volume] is an item index.
        genres: for every series its genre.
    """

    items: ItemTable
    activities: list[str]
    leads_to: list[list[int]]
    thing_at: list[list[list[int]]]
    book_at: list[list[int]]
    genres: list[str]


def make_catalogue() -> Catalogue:
    """Make the items."""
    departments, styles, all_series = (_words(name) for name in ("activities", "styles", "series"))
    items = ItemTable()
    plans = [
        (department, activity, plan)
        for department, activities in departments.items()
        for activity, plan in activities.items()
    ]
    names = [activity for _, activity, _ in plans]
    return Catalogue(
        items=items,
        activities=names,
        leads_to=[[names.index(name) for name in plan["leads_to"]] for _, _, plan in plans],
        thing_at=[
            [
                [_add_thing(items, department, activity, plan["kinds"], step, style) for style in styles]
                for step in range(len(plan["kinds"]))
            ]
            for department, activity, plan in plans
        ],
        book_at=[
            [_add_book(items, series, volume) for volume in range(len(series["books"]))]
            for series in all_series
        ],
        genres=[series["genre"] for series in all_series],
    )


def _words(name: str) -> Any:
    text = resources.files("training.items.demo").joinpath(f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)


def _add_thing(
    items: ItemTable, department: str, activity: str, kinds: list, step: int, style: dict[str, Any]
) -> int:
    kind, base_price, specs, purpose = kinds[step]
    brand = style["brands"][department]
    line = _pick(style["lines"], kind, brand, "line")
    spec = _pick(specs, kind, brand, "spec")
    promise = _pick(style["promises"], kind, brand, "promise")
    sentences = [purpose, promise]
    if step:
        sentences.append(f"Goes with the {brand} {kinds[step - 1][0].lower()}.")
    metadata = {
        "brand": brand,
        "category": f"{department} > {activity}",
        "price": _price(base_price * style["price"]),
        "in_stock": _number(kind, brand, "stock") % 16 != 0,
    }
    item_id = f"{_slug(activity)}-{_slug(kind)}-{_slug(brand)}"
    return items.add(item_id, f"{brand} {line} {kind}, {spec}", " ".join(sentences), metadata)


def _add_book(items: ItemTable, series: dict[str, Any], volume: int) -> int:
    title, hook = series["books"][volume]
    name, author = series["series"], series["author"]
    description = (
        f"{series['premise']} Book {_ORDINALS[volume]} of {_ORDINALS[len(series['books']) - 1]} of "
        f"{name} by {author}, in which {hook}. {series['genre']}, paperback."
    )
    metadata = {
        "brand": author,
        "category": f"Books > {series['genre']}",
        "price": _price(8 + _number(title) % 7),
        "in_stock": _number(title, "stock") % 16 != 0,
    }
    return items.add(f"book-{_slug(title)}", f"{title} ({name}, Book {volume + 1})", description, metadata)


def _number(*words: str) -> int:
    """A number that looks random and never changes."""
    return zlib.crc32("|".join(words).encode())


def _pick(choices: list[str], *words: str) -> str:
    return choices[_number(*words) % len(choices)]


def _price(amount: float) -> float:
    return max(3, round(amount)) - 0.05


def _slug(name: str) -> str:
    kept = "".join(letter if letter.isalnum() else " " for letter in name.lower().replace("'", ""))
    return "-".join(kept.split())
