"""The bundles that could be served: directories on this machine, by their ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.bundle import Bundle, Manifest, load_bundle
from service.bundle.manifest import MANIFEST_NAME
from service.errors import BundleError, NotFound


@dataclass(frozen=True)
class ShelvedBundle:
    """A bundle as its manifest describes it; nothing else of it was read yet."""

    path: Path
    bundle_id: str
    manifest: Manifest


class BundleShelf:
    """Finds bundles.

    Args:
        directory: whose sub-directories are looked at; None: only the bundle being served.
        opened: bundles that are open already.
        verify: hash every file when one is opened.
    """

    def __init__(self, directory: Path | None, opened: Bundle, *, verify: bool) -> None:
        self._directory = directory
        self._opened = opened
        self._verify = verify

    def bundles(self) -> list[ShelvedBundle]:
        """All of them, by directory name. Directories that hold no readable manifest are passed over."""
        found = {
            self._opened.bundle_id: ShelvedBundle(
                self._opened.path, self._opened.bundle_id, self._opened.manifest
            )
        }
        for path in sorted(self._directory.iterdir()) if self._directory and self._directory.is_dir() else ():
            try:
                manifest = Manifest.model_validate_json((path / MANIFEST_NAME).read_bytes())
            except (OSError, ValueError):
                continue  # half-copied, or something else; opening it by name says what is wrong
            found.setdefault(manifest.bundle_id(), ShelvedBundle(path, manifest.bundle_id(), manifest))
        return list(found.values())

    def find(self, bundle_id: str) -> ShelvedBundle:
        """One of them.

        Raises:
            NotFound: it is not there.
        """
        for shelved in self.bundles():
            if shelved.bundle_id == bundle_id:
                return shelved
        where = "GTIREC_BUNDLES_DIR is not set" if self._directory is None else "GTIREC_BUNDLES_DIR lacks it"
        raise NotFound(f"no bundle {bundle_id} is on this machine: {where}; copy it there first")

    def open(self, bundle_id: str) -> Bundle:
        """Open and check one.

        Raises:
            NotFound: it is not there.
            BundleError: it is damaged.
        """
        shelved = self.find(bundle_id)
        bundle = load_bundle(shelved.path, verify=self._verify)
        if bundle.bundle_id != bundle_id:
            raise BundleError(f"the bundle {bundle_id} was exchanged while it was opened; try again")
        return bundle
