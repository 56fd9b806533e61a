"""Style, types and import rules, as tests: what they find fails `make test` like everything else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(name: str, *arguments: str, **environment: str) -> None:
    """Run a tool that stands beside this Python; what it prints is the failure's message."""
    executable = Path(sys.executable).with_name(name)
    if not executable.exists():
        pytest.skip(f"{name} is not installed beside this Python; `make install-dev` installs it")
    done = subprocess.run(
        [executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}"


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", ".")


def test_files_are_formatted() -> None:
    run("ruff", "format", "--check", ".")


def test_import_rules_are_kept() -> None:
    run("lint-imports", "--no-cache")


def test_types_are_right() -> None:
    run("pyright", "--pythonpath", sys.executable, **_with_node())


def _with_node() -> dict[str, str]:
    """A PATH with Node.js on it: pyright needs one, and Playwright's wheel brings one along."""
    if shutil.which("node"):
        return {}
    try:
        from playwright._impl._driver import compute_driver_executable
    except ImportError:
        pytest.skip("pyright needs Node.js: neither `node` nor Playwright's own is there")
    node = Path(compute_driver_executable()[0])
    return {"PATH": f"{node.parent}{os.pathsep}{os.environ['PATH']}"}
