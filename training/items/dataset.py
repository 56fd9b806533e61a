"""The data of one run as every later stage reads it.

Rows (train, valid, test) are next-item examples: a history of item indices, oldest first, and the
item that came next. Whole training sequences are rebuilt from the train rows alone, so that nothing
of the validation or test part can reach the training.

Test rows are read once, by the evaluation stage. A dataset is loaded without them unless the
caller asks for them by name, and the attribute refuses until then.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from training.items.errors import DataError

ITEM_COLUMNS = ("item_id", "title", "description", "metadata")
ROW_SCHEMA = {"user_id": pl.String, "history": pl.List(pl.Int32), "target": pl.Int32}
SEQUENCE_SCHEMA = {"user_id": pl.String, "items": pl.List(pl.Int32)}
_ABOUT = "dataset.json"


@dataclass(frozen=True)
class Dataset:
    """Items, rows and sequences. Items are addressed by index 0..N-1, their row in `items`.

    Attributes:
        items: columns item_id, title, description, metadata (a JSON object as text). N rows.
        train, valid: columns user_id (str), history (list of i32, oldest first, 1 to
            `history_limit` items), target (i32).
        train_sequences: columns user_id, items (list of i32, oldest first, at least 2 items).
        popularity: occurrences of every item in the training sequences. Shape: (N,), int64.
        history_limit: newest items a history keeps.
        name: where the data came from, for tables.
    """

    items: pl.DataFrame
    train: pl.DataFrame
    valid: pl.DataFrame
    train_sequences: pl.DataFrame
    popularity: np.ndarray
    history_limit: int
    name: str = ""
    _test: pl.DataFrame | None = field(default=None, repr=False)

    @property
    def num_items(self) -> int:
        """N."""
        return self.items.height

    @property
    def test(self) -> pl.DataFrame:
        """Test rows, columns as `train`.

        Raises:
            AssertionError: the dataset was loaded without them. Only the evaluation stage may
                load them: what is chosen by looking at test rows is not a result.
        """
        if self._test is None:
            raise AssertionError(
                "test rows belong to the evaluation stage alone: Dataset.load(dir, with_test=True); "
                "choose by the validation rows"
            )
        return self._test

    @classmethod
    def make(
        cls,
        items: pl.DataFrame,
        train: pl.DataFrame,
        valid: pl.DataFrame,
        test: pl.DataFrame,
        *,
        history_limit: int,
        name: str = "",
    ) -> Dataset:
        """Put a dataset together from its rows; sequences and popularity come from the train rows."""
        sequences = whole_sequences(train, history_limit)
        return cls(
            items=items.select(ITEM_COLUMNS),
            train=train,
            valid=valid,
            train_sequences=sequences,
            popularity=count_items(sequences, items.height),
            history_limit=history_limit,
            name=name,
            _test=test,
        )

    def with_validation(self) -> Dataset:
        """The same data with its validation rows as training rows; nothing is left to choose by."""
        train = pl.concat([self.train, self.valid])
        sequences = whole_sequences(train, self.history_limit)
        return replace(
            self,
            train=train,
            valid=self.valid.clear(),
            train_sequences=sequences,
            popularity=count_items(sequences, self.num_items),
        )

    def save(self, directory: Path) -> None:
        """Write the dataset's files; see `load`."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, frame in self._frames().items():
            frame.write_parquet(directory / f"{name}.parquet", compression="zstd", statistics=False)
        np.save(directory / "popularity.npy", self.popularity)
        about = {"name": self.name, "history_limit": self.history_limit, "num_items": self.num_items}
        (directory / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path, *, with_test: bool = False) -> Dataset:
        """Read a saved dataset.

        Args:
            directory: the items stage's folder.
            with_test: read the test rows too; for the evaluation stage only.

        Raises:
            DataError: a file is missing or damaged.
        """
        try:
            about = json.loads((directory / _ABOUT).read_text(encoding="utf-8"))
            names = ["items", "train", "valid", "train_sequences", *(["test"] if with_test else [])]
            frames = {name: pl.read_parquet(directory / f"{name}.parquet") for name in names}
            popularity = np.load(directory / "popularity.npy", allow_pickle=False)
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"the items in {directory} cannot be read ({error}); run the stage again: "
                "python -m training items --config RECIPE.toml"
            ) from error
        return cls(
            items=frames["items"],
            train=frames["train"],
            valid=frames["valid"],
            train_sequences=frames["train_sequences"],
            popularity=popularity,
            history_limit=int(about["history_limit"]),
            name=str(about["name"]),
            _test=frames.get("test"),
        )

    def _frames(self) -> dict[str, pl.DataFrame]:
        return {
            "items": self.items,
            "train": self.train,
            "valid": self.valid,
            "test": self.test,
            "train_sequences": self.train_sequences,
        }


def whole_sequences(rows: pl.DataFrame, history_limit: int) -> pl.DataFrame:
    """Rebuild every user's sequence from his next-item rows.

    A row continues the row before it (of the same user) if its history is that row's history plus
    its target, cut to the newest `history_limit` items; otherwise a new sequence starts.

    Args:
        rows: columns user_id, history, target; a user's rows in order of time.
        history_limit: how histories were cut.

    Returns:
        Columns user_id, items (list of i32), users in order of first appearance.
    """
    if not rows.height:
        return pl.DataFrame(schema=SEQUENCE_SCHEMA)
    order = rows.with_row_index("at").with_columns(first=pl.col("at").min().over("user_id"))
    order = order.sort("first", "at")
    before = pl.concat_list("history", "target").list.tail(history_limit).shift(1)
    continues = (pl.col("user_id") == pl.col("user_id").shift(1)) & (pl.col("history") == before)
    numbered = order.with_columns(sequence=(~continues.fill_null(False)).cum_sum())
    return (
        numbered.group_by("sequence", maintain_order=True)
        .agg(
            pl.col("user_id").first(),
            items=pl.concat([pl.col("history").first().explode(), pl.col("target")]),
        )
        .select("user_id", pl.col("items").cast(pl.List(pl.Int32)))
    )


def count_items(sequences: pl.DataFrame, num_items: int) -> np.ndarray:
    """Occurrences of every item in the sequences. Shape: (N,), int64."""
    if not sequences.height:
        return np.zeros(num_items, dtype=np.int64)
    return np.bincount(sequences["items"].explode().to_numpy(), minlength=num_items).astype(np.int64)
