"""From the recipe's `[items]` section to a `Dataset`."""

from __future__ import annotations

import polars as pl

from training.items.bad_rows import BadRows
from training.items.config import ItemsConfig
from training.items.dataset import Dataset
from training.items.errors import DataError
from training.items.item_table import ItemTable
from training.items.readers import minionerec, own, recbole, sequences
from training.items.splits import Splits, filter_events, global_time, leave_one_out

_SPLITS = {"leave_one_out": leave_one_out, "global_time": global_time}


def build_dataset(config: ItemsConfig) -> tuple[Dataset, BadRows]:
    """Read or generate the data, split it, and list what was left out.

    Raises:
        DataError: the data cannot be used; the message says where and what to do.
    """
    bad_rows = BadRows(config.on_bad_row)
    history_limit = config.history_limit
    if config.source == "minionerec":
        items, splits = minionerec.read(config.minionerec, history_limit, bad_rows)
        # The files' own cut decides where one row continues another.
        history_limit = min(history_limit, _longest_history(splits))
        name = config.minionerec.name
    elif config.source == "own":
        items, events = own.read(config.own, bad_rows)
        splits = _SPLITS[config.own.split](_filtered(events, config), history_limit)
        name = config.own.interactions.name.split(".")[0]
    elif config.source == "recbole":
        items, events = recbole.read(config.recbole, bad_rows)
        splits = _SPLITS[config.recbole.split](_filtered(events, config), history_limit)
        name = config.recbole.name
    elif config.source == "sequences":
        items, events = sequences.read(config.sequences, bad_rows)
        splits = leave_one_out(_filtered(events, config), history_limit)
        name = config.sequences.sequences.name.split(".")[0]
    else:
        from training.items.demo.shop import make_shop

        items, events = make_shop(num_users=config.demo.num_users, seed=config.demo.seed)
        splits = leave_one_out(_filtered(events, config), history_limit)
        name = "demo"
    return _dataset(items, splits, history_limit, name), bad_rows


def _filtered(events: pl.DataFrame, config: ItemsConfig) -> pl.DataFrame:
    kept = filter_events(events, min_user=config.min_user_interactions, min_item=config.min_item_interactions)
    if not kept.height:
        raise DataError(
            f"no interaction is left after items.min_user_interactions = {config.min_user_interactions} and "
            f"items.min_item_interactions = {config.min_item_interactions}; lower them"
        )
    return kept


def _longest_history(splits: Splits) -> int:
    longest = [part["history"].list.len().max() for part in (splits.train, splits.valid, splits.test)]
    return max([1, *(int(n) for n in longest if isinstance(n, int))])


def _dataset(items: ItemTable, splits: Splits, history_limit: int, name: str) -> Dataset:
    for part, rows in (("train", splits.train), ("validation", splits.valid), ("test", splits.test)):
        if not rows.height:
            raise DataError(
                f"the data leave no {part} row; more interactions per user are needed "
                "(at least 3 for leave-one-out, and one training row needs a user with 4 or just 2)"
            )
    return Dataset.make(
        items.to_frame(),
        splits.train,
        splits.valid,
        splits.test,
        history_limit=history_limit,
        name=name,
    )
