"""Recipe section `[items]`: where the items and histories come from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Source = Literal["demo", "own", "minionerec", "sequences", "recbole"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DemoConfig(_Section):
    """The generated shop. The same numbers always make the same shop."""

    num_users: int = Field(default=3000, ge=10, le=1_000_000, description="users with a history")
    seed: int = Field(default=0, ge=0, description="another seed, other users (the items stay)")


class OwnConfig(_Section):
    """Your own data: one file of items, one of interactions."""

    items: Path = Field(
        default=Path("data/items.jsonl"),
        description="one JSON object per line: item_id, title, description?, metadata?; .gz is read too",
    )
    interactions: Path = Field(
        default=Path("data/interactions.csv"),
        description="columns user_id, item_id, timestamp (number or ISO 8601), maybe event; .gz too",
    )
    split: Literal["leave_one_out", "global_time"] = Field(
        default="leave_one_out",
        description=(
            "leave_one_out: each user's last item is the test, the one before it the validation; "
            "global_time: the first 80 % of all next-item rows by time train, then 10 % and 10 %, "
            "which lets no user's future into another's training"
        ),
    )
    events: tuple[str, ...] = Field(
        default=(), description="values of the event column to use; empty means all of them"
    )


class MiniOneRecConfig(_Section):
    """The MiniOneRec layout: ready rows of history and target. File names are found by `name`."""

    folder: Path = Field(default=Path("data/minionerec"), description="e.g. MiniOneRec's data/Amazon")
    name: str = Field(default="Industrial_and_Scientific", description="how the files' names begin")
    train: Path | None = Field(default=None, description="rows to train on, if not found by name")
    valid: Path | None = Field(default=None, description="rows to choose by, if not found by name")
    test: Path | None = Field(default=None, description="rows read once at the end, if not found by name")
    items: Path | None = Field(
        default=None, description="item.json, or info txt of SID, title, id; if not found by name"
    )


class SequencesConfig(_Section):
    """Lines of `user item item ...`, oldest first, and a text for every item; leave-one-out."""

    sequences: Path = Field(default=Path("data/sequences.txt"), description="one user per line")
    item_text: Path = Field(
        default=Path("data/item_text.txt"),
        description="lines of item, tab or space, text; or items.jsonl as for your own data",
    )
    item_keywords: Path | None = Field(
        default=None,
        description="more words per item, as description: lines of item, tab or space, words separated by "
        "'|' (sub-word marks are read as spaces)",
    )
    id_map: Path | None = Field(
        default=None,
        description="what the ids in `sequences` are called in `item_text`: JSON object "
        "(or one with a key `id2item`), or lines of id, tab, item; .gz is read too",
    )


class RecBoleConfig(_Section):
    """RecBole's atomic files NAME.inter and NAME.item, as its data sets are distributed."""

    folder: Path = Field(default=Path("data/ml-100k"), description="where the two files lie")
    name: str = Field(default="ml-100k", description="how their names begin")
    split: Literal["leave_one_out", "global_time"] = Field(
        default="leave_one_out", description="as for your own data"
    )
    min_rating: float | None = Field(
        default=None, description="interactions rated lower are left out; unset: all count"
    )
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str = Field(default="timestamp", description="if absent, the file's order counts")
    rating_column: str = "rating"
    title_column: str | None = Field(default=None, description="unset: title, movie_title, name or the like")


class ItemsConfig(_Section):
    """Where items and histories come from, and how they are cut into rows.

    Paths are relative to the directory the command is started in.
    """

    source: Source = "demo"
    on_bad_row: Literal["error", "skip"] = Field(
        default="error",
        description="error: stop at the first bad row; skip: leave it out and list it in bad_rows.jsonl",
    )
    history_limit: int = Field(default=10, ge=1, le=1000, description="newest items a row's history keeps")
    min_user_interactions: int = Field(
        default=1, ge=1, description="users with fewer interactions are left out (not for minionerec)"
    )
    min_item_interactions: int = Field(
        default=0,
        ge=0,
        description="interactions with rarer items are left out (not for minionerec); "
        "the items stay in the catalogue",
    )
    demo: DemoConfig = DemoConfig()
    own: OwnConfig = OwnConfig()
    minionerec: MiniOneRecConfig = MiniOneRecConfig()
    sequences: SequencesConfig = SequencesConfig()
    recbole: RecBoleConfig = RecBoleConfig()

    @model_validator(mode="after")
    def _warn_of_ignored_settings(self) -> ItemsConfig:
        filters = self.min_user_interactions > 1 or self.min_item_interactions > 0
        if self.source == "minionerec" and filters:
            raise ValueError(
                "min_user_interactions and min_item_interactions do not apply to source = 'minionerec', "
                "whose own rows are kept as they are; remove them"
            )
        return self
