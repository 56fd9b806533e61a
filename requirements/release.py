"""What a release needs beside green tests: `make release-check`, and `make licences` for the list.

    python requirements/release.py check       one sentence per thing that is missing; exit status 1 if any
    python requirements/release.py licences    writes LICENCES.md from the installed packages of a lock file

Run it with the environment's Python; it imports nothing but the standard library.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = ROOT / "requirements/CHANGELOG.md"
LICENCES = ROOT / "requirements/LICENCES.md"
LOCK = ROOT / "requirements/cpu-x86_64.txt"
HEADER = """# Licences of the packages we build on

Written by `make licences` from the metadata of the packages in `cpu-x86_64.txt` (and torch); not edited by
hand. `make release-check` compares the names and versions with the lock file. The gpu image holds NVIDIA's
CUDA libraries besides, under NVIDIA's own terms. A licence is what the package says of itself.

| package | version | licence |
|---|---|---|
"""


def version() -> str:
    """Of the project."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def pins(lock: Path = LOCK) -> dict[str, str]:
    """Package -> version, of a lock file."""
    return dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^ ;]+)", lock.read_text()))


def licence_of(package: str) -> str:
    """What an installed package says, in a few words."""
    try:
        about = metadata(package)
    except PackageNotFoundError:
        return "not installed where this was written"
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    named = "; ".join(name for name in classifiers if name != "OSI Approved")
    first_line = (about.get("License") or "").strip().splitlines()[:1]
    return named or (first_line[0][:60] if first_line else "not stated; see its homepage")


def licences() -> str:
    """The whole of LICENCES.md."""
    torch = re.findall(r"(?m)^torch==(\S+)$", (ROOT / "requirements/torch.txt").read_text())[0]
    packages = sorted({**pins(), "torch": torch}.items(), key=lambda pair: pair[0].lower())
    rows = [f"| {name} | {pin} | {licence_of(name).replace('|', '/')} |" for name, pin in packages]
    return HEADER + "\n".join(rows) + "\n"


def problems() -> list[str]:
    """What keeps this tree from being released, apart from its tests."""
    found = [*_version_problems(), *_licence_problems()]
    if _git("status", "--porcelain"):
        found.append("the tree has changes that are not committed")
    if f"v{version()}" in _git("tag", "--list").split():
        found.append(f"the tag v{version()} exists already: raise `version` in pyproject.toml")
    return found


def _version_problems() -> list[str]:
    wanted, found = version(), []
    newest = re.findall(r"(?m)^## (\S+)", CHANGELOG.read_text())
    if newest[:1] != [wanted]:
        found.append(f"CHANGELOG.md begins with {newest[:1]}, pyproject.toml says {wanted}")
    images = set(re.findall(r"(?m)^ARG VERSION=(\S+)$", (ROOT / "Dockerfile").read_text()))
    if images != {wanted}:
        found.append(f"the Dockerfile's VERSION is {sorted(images)}, pyproject.toml says {wanted}")
    return found


def _licence_problems() -> list[str]:
    listed = dict(re.findall(r"(?m)^\| ([A-Za-z0-9._-]+) \| (\S+) \|", LICENCES.read_text()))
    listed.pop("package", None)
    listed.pop("torch", None)
    changed = sorted(set(listed.items()) ^ set(pins().items()))
    return [f"LICENCES.md does not fit the lock file ({changed[0][0]}): make licences"] if changed else []


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """The command line."""
    if sys.argv[1:] == ["licences"]:
        LICENCES.write_text(licences())
        return 0
    if sys.argv[1:] != ["check"]:
        print(__doc__, file=sys.stderr)
        return 2
    found = problems()
    for sentence in found:
        print(f"release-check: {sentence}", file=sys.stderr)
    if not found:
        print(
            f"release-check: {version()} can be tagged: git tag -a v{version()}, then .ci/images, then push"
        )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
