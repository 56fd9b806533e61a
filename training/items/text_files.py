"""Read text files that people bring: plain or gzip, UTF-8, with a clear sentence when they are not."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from training.items.errors import DataError


@contextmanager
def open_text(path: Path) -> Iterator[IO[Any]]:
    """Open a UTF-8 text file, decompressed if its name ends in .gz.

    Raises:
        DataError: the file is missing or unreadable, not UTF-8, or not gzip. Also raised for
            trouble met later, while the caller reads.
    """
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give its path in the recipe's [items] section") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); convert it to UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); check the file") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines without their end, numbered from 1; blank lines are passed over."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.rstrip("\r\n")
