"""Directories through which the engine gets a new catalogue: one per version, on this machine's disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from service.catalogue.snapshot import Snapshot
from service.decoding.search_space import write_catalogue

NUM_KEPT = 2  # the one in use, and the one before for an engine that is just opening it


class CatalogueFiles:
    """Writes the directories of one process and removes those that are no longer used.

    Args:
        parent: directory shared by the processes of this machine; what dead ones left there is removed.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._own: Path | None = None
        self._lock: IO[str] | None = None
        self._written: list[Path] = []

    def write(self, snapshot: Snapshot) -> Path:
        """Write what `Engine.load_catalogue` reads.

        Raises:
            OSError: the disk is full or read-only.
        """
        assert snapshot.trie is not None
        directory = self._directory() / f"{len(self._written):06d}-v{snapshot.version}"
        write_catalogue(directory, snapshot.trie, snapshot.space.attributes)
        self._written.append(directory)
        return directory

    def drop_old(self) -> None:
        """Remove what no engine opens any more; one that has it mapped keeps it."""
        for directory in self._written[:-NUM_KEPT]:
            shutil.rmtree(directory, ignore_errors=True)

    def close(self) -> None:
        """Remove everything of this process."""
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        self._own = self._lock = None

    def _directory(self) -> Path:
        if self._own is None:
            self._parent.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            own = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._parent))
            self._lock = (own / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._own = own
        return self._own

    def _remove_leftovers(self) -> None:
        for lock in self._parent.glob("*/lock"):
            with contextlib.suppress(OSError), lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its process lives
                shutil.rmtree(lock.parent, ignore_errors=True)
