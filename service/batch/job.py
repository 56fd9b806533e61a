"""What a batch job is: its input in one form, its parts, and how it knows what is done."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.batch.inputs import read_histories, read_items
from service.bundle.layout import hash_file
from service.errors import BatchError

JOB_FILE = "job.json"
INPUT_FILE = "input.parquet"


class JobSettings(BaseModel):
    """What decides the recommendations of a job; other settings need another output directory.

    Attributes:
        k, beam_width, exclude_seen, filter: as in `POST /recommend`; a width of 0 is one that was not named.
        rows_per_part: users in one part, the unit of work that a kill can cost.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["recommend"] = "recommend"
    k: int = Field(default=10, ge=1, le=200)
    beam_width: int = Field(default=50, ge=0)
    exclude_seen: bool = True
    filter: Any = None
    rows_per_part: int = Field(default=10_000, ge=1)


class EmbedSettings(BaseModel):
    """What decides the vectors of a job, beside the bundle.

    Attributes:
        rows_per_part: items in one part.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["embed"] = "embed"
    rows_per_part: int = Field(default=10_000, ge=1)


AnySettings = JobSettings | EmbedSettings
_SETTINGS: TypeAdapter[AnySettings] = TypeAdapter(Annotated[AnySettings, Field(discriminator="kind")])


@dataclass(frozen=True)
class Job:
    """A job in its output directory.

    Attributes:
        directory: holds job.json, input.parquet and the parts.
        settings: what was asked.
        num_rows: users or items, rows of input.parquet.
    """

    directory: Path
    settings: AnySettings
    num_rows: int

    @classmethod
    def open(cls, source: Path, directory: Path, settings: AnySettings, bundle_id: str) -> Job:
        """Begin a job, or go on with the one in `directory`.

        Args:
            source: see `read_histories` and `read_items`.
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
            num_rows = begun.pop("num_rows")
            if begun != about:
                changed = next(name for name in about if begun.get(name) != about[name])
                raise BatchError(
                    f"{directory} holds a job with another {changed}; name another --output, or remove it"
                )
            return cls(directory, settings, num_rows)
        rows = read_histories(source) if settings.kind == "recommend" else read_items(source)
        write_atomically(rows, directory / INPUT_FILE)
        _write_json(file, {**about, "num_rows": rows.height})
        return cls(directory, settings, rows.height)

    @classmethod
    def resume(cls, directory: Path) -> Job:
        """The job that was begun in a directory, for a worker in another process."""
        about = json.loads((directory / JOB_FILE).read_text(encoding="utf-8"))
        return cls(directory, _SETTINGS.validate_python(about["settings"]), about["num_rows"])

    @property
    def num_parts(self) -> int:
        """Parts in all."""
        return -(-self.num_rows // self.settings.rows_per_part)

    def num_rows_of(self, number: int) -> int:
        """Rows of a part; only the last part may be smaller than the others."""
        size = self.settings.rows_per_part
        return min(size, self.num_rows - number * size)

    def part_file(self, number: int) -> Path:
        """Where the answers of a part lie once it is done."""
        return self.directory / f"part-{number:06d}.parquet"

    def open_parts(self) -> list[int]:
        """Numbers of the parts that are not done."""
        return [number for number in range(self.num_parts) if not self.part_file(number).is_file()]

    def rows_of(self, number: int) -> pl.DataFrame:
        """Rows of a part, as `read_histories` or `read_items` gives them."""
        scan = pl.scan_parquet(self.directory / INPUT_FILE)
        return scan.slice(number * self.settings.rows_per_part, self.settings.rows_per_part).collect()

    def finish_part(self, number: int, answers: pl.DataFrame) -> None:
        """Put a part in place."""
        write_atomically(answers, self.part_file(number))


def parse_settings(**values: Any) -> AnySettings:
    """Settings from the command line; `kind` says which.

    Raises:
        BatchError: a value is out of range.
    """
    try:
        return _SETTINGS.validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise BatchError(f"--{problem['loc'][-1]}: {problem['msg']}".replace("_", "-")) from error


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
