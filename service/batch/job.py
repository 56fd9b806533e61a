"""What a batch job is: its input in one form, its parts, and how it knows what is done."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.bundle.layout import hash_file
from service.errors import BatchError

JOB_FILE = "job.json"
HISTORIES_FILE = "histories.parquet"
ANSWER_SCHEMA = {
    "user_id": pl.String,
    "item_ids": pl.List(pl.String),
    "logprobs": pl.List(pl.Float32),
    "sources": pl.List(pl.String),
    "unknown_items": pl.List(pl.String),
}


class JobSettings(BaseModel):
    """What decides the answers; a job with other settings needs another output directory.

    Attributes:
        k, beam_width, exclude_seen, filter: as in `POST /recommend`; a width of 0 is one that was not named.
        rows_per_part: users in one part, the unit of work that a kill can cost.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(default=10, ge=1, le=200)
    beam_width: int = Field(default=50, ge=0)
    exclude_seen: bool = True
    filter: Any = None
    rows_per_part: int = Field(default=10_000, ge=1)


@dataclass(frozen=True)
class Job:
    """A job in its output directory.

    Attributes:
        directory: holds job.json, histories.parquet and the parts.
        settings: what was asked.
        num_users: rows of histories.parquet.
    """

    directory: Path
    settings: JobSettings
    num_users: int

    @classmethod
    def open(cls, source: Path, directory: Path, settings: JobSettings, bundle_id: str) -> Job:
        """Begin a job, or go on with the one in `directory`.

        Args:
            source: see `read_histories`.
            directory: made if missing.
            settings: what to answer.
            bundle_id: what answers.

        Raises:
            BatchError: the directory holds another job, or the input cannot be read.
        """
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / JOB_FILE
        about = {
            "bundle_id": bundle_id,
            "input_sha256": hash_file(_existing(source)),
            "settings": settings.model_dump(mode="json"),
        }
        if file.is_file():
            begun = json.loads(file.read_text(encoding="utf-8"))
            num_users = begun.pop("num_users")
            if begun != about:
                changed = next(name for name in about if begun.get(name) != about[name])
                raise BatchError(
                    f"{directory} holds a job with another {changed}; name another --output, or remove it"
                )
            return cls(directory, settings, num_users)
        histories = read_histories(source)
        write_atomically(histories, directory / HISTORIES_FILE)
        _write_json(file, {**about, "num_users": histories.height})
        return cls(directory, settings, histories.height)

    @classmethod
    def resume(cls, directory: Path) -> Job:
        """The job that was begun in a directory, for a worker in another process."""
        about = json.loads((directory / JOB_FILE).read_text(encoding="utf-8"))
        return cls(directory, JobSettings.model_validate(about["settings"]), about["num_users"])

    @property
    def num_parts(self) -> int:
        """Parts in all."""
        return -(-self.num_users // self.settings.rows_per_part)

    def part_file(self, number: int) -> Path:
        """Where the answers of a part lie once it is done."""
        return self.directory / f"part-{number:06d}.parquet"

    def open_parts(self) -> list[int]:
        """Numbers of the parts that are not done."""
        return [number for number in range(self.num_parts) if not self.part_file(number).is_file()]

    def histories_of(self, number: int) -> pl.DataFrame:
        """Users of a part: columns user_id, history."""
        scan = pl.scan_parquet(self.directory / HISTORIES_FILE)
        return scan.slice(number * self.settings.rows_per_part, self.settings.rows_per_part).collect()

    def finish_part(self, number: int, answers: pl.DataFrame) -> None:
        """Put a part in place."""
        write_atomically(answers, self.part_file(number))


def read_histories(source: Path) -> pl.DataFrame:
    """One row per user: user_id, history (item ids, oldest first).

    Args:
        source: .parquet or .jsonl with these two columns, or .csv with user_id, item_id, timestamp, one
            row per interaction (what `export-events` writes).

    Raises:
        BatchError: with what is wrong.
    """
    try:
        if source.suffix == ".parquet":
            frame = pl.read_parquet(source, columns=["user_id", "history"])
        elif source.suffix in (".jsonl", ".ndjson"):
            frame = pl.read_ndjson(source).select("user_id", "history")
        elif source.suffix == ".csv":
            rows = pl.read_csv(source, schema_overrides={"user_id": pl.String, "item_id": pl.String})
            ordered = rows.sort("timestamp", maintain_order=True)
            frame = ordered.group_by("user_id", maintain_order=True).agg(pl.col("item_id").alias("history"))
            frame = frame.sort("user_id")
        else:
            raise BatchError(f"{source} is neither .parquet, .jsonl nor .csv")
        frame = frame.cast({"user_id": pl.String, "history": pl.List(pl.String)})
    except pl.exceptions.PolarsError as error:
        raise BatchError(f"{source} cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not frame.height:
        raise BatchError(f"{source} holds no user")
    if frame["user_id"].null_count() or frame["history"].null_count():
        raise BatchError(f"{source} holds a row without user_id or history")
    if frame["user_id"].n_unique() != frame.height:
        raise BatchError(f"{source} holds a user_id more than once; one row per user is needed")
    return frame


def parse_settings(**values: Any) -> JobSettings:
    """Settings from the command line.

    Raises:
        BatchError: a value is out of range.
    """
    try:
        return JobSettings(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise BatchError(f"--{problem['loc'][0]}: {problem['msg']}".replace("_", "-")) from error


def parse_filter(text: str | None) -> Any:
    """A filter from the command line; the engine's side says whether it can be understood.

    Raises:
        BatchError: it is no JSON.
    """
    try:
        return None if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise BatchError(f"--filter is no JSON ({error})") from error


def write_atomically(frame: pl.DataFrame, file: Path) -> None:
    """A kill at any moment leaves no file or the whole one."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    frame.write_parquet(temporary)
    _put(temporary, file)


def _write_json(file: Path, value: dict[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _put(temporary, file)


def _put(temporary: Path, file: Path) -> None:
    with temporary.open("rb") as opened:
        os.fsync(opened.fileno())
    temporary.replace(file)


def _existing(source: Path) -> Path:
    if not source.is_file():
        raise BatchError(f"there is no file {source}")
    return source
