"""Rows that cannot be used: stop at the first, or count and list them, as the recipe says."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from training.items.errors import DataError


@dataclass
class BadRows:
    """Collects bad rows of one run of the items stage.

    Attributes:
        policy: "error" raises at the first one; "skip" lists them all.
        found: file, place in it, and what is wrong, in the order met.
    """

    policy: Literal["error", "skip"] = "error"
    found: list[dict[str, str]] = field(default_factory=list)

    def add(self, file: Path, line: int | str, wrong: str, mend: str, kind: str | None = None) -> None:
        """Report one bad row.

        Args:
            file: where it is.
            line: line number from 1, or another name of the place.
            wrong: what is wrong, with the value.
            mend: what to do about it.
            kind: short name to count by; `wrong` if not given.

        Raises:
            DataError: if the policy is "error".
        """
        if self.policy == "error":
            raise DataError(
                f'{file}:{line}: {wrong}; {mend}, or set items.on_bad_row = "skip" to leave such rows out'
            )
        self.found.append({"file": file.name, "line": str(line), "wrong": wrong, "kind": kind or wrong})

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind, most frequent first."""
        return dict(Counter(row["kind"] for row in self.found).most_common())

    def save(self, path: Path) -> None:
        """Write one JSON object per bad row; an empty file if there were none."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.found]
        path.write_text("".join(lines), encoding="utf-8")
