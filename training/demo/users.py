"""Test users of the demo shop: what they bought, and what they really bought next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.items.dataset import Dataset


@dataclass(frozen=True)
class User:
    """A row of the test part.

    Attributes:
        user_id: the shop's name for the user.
        history: item ids, oldest first.
        target: item id that came next; no model has seen it.
    """

    user_id: str
    history: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Shop:
    """What the demo knows beside the service.

    Attributes:
        titles: item id -> title, for every item.
        users: every test user.
        popular: item ids, most bought first.
    """

    titles: dict[str, str]
    users: tuple[User, ...]
    popular: tuple[str, ...]

    @classmethod
    def load(cls, items_dir: Path) -> Shop:
        """Read the items stage's folder. Test rows are only shown and counted here, never chosen by."""
        dataset = Dataset.load(items_dir, with_test=True)
        ids = dataset.items["item_id"].to_list()
        users = tuple(
            User(user_id, tuple(ids[item] for item in history), ids[target])
            for user_id, history, target in dataset.test.select("user_id", "history", "target").iter_rows()
        )
        order = np.argsort(-dataset.popularity, kind="stable")
        titles = dict(zip(ids, dataset.items["title"].to_list(), strict=True))
        return cls(titles, users, tuple(ids[item] for item in order))

    def evenly_spread(self, num_users: int) -> list[User]:
        """Users picked by their place in the list alone: the middles of `num_users` equal parts."""
        num_users = min(num_users, len(self.users))
        places = (np.arange(num_users) + 0.5) * len(self.users) / num_users
        return [self.users[int(place)] for place in places]
