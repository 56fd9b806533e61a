"""What the tests of the deployment files share: tools, paths, the service's settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.settings import Settings

ROOT = Path(__file__).parents[2]
# Seconds that `service.server` waits beyond drain and shutdown before it ends itself.
HARD_STOP_S = 10


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command-line tool of the development lock on files of the repository."""

    def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        executable = Path(sys.executable).with_name(name)
        if not executable.exists():
            pytest.skip(f"{name} is not installed beside this Python; `make install-dev` installs it")
        return subprocess.run([executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def setting_names() -> set[str]:
    """Every environment variable that the service reads as a setting."""
    return {f"GTIREC_{name.upper()}" for name in Settings.model_fields}


@pytest.fixture(scope="session")
def demo_bundle() -> str:
    """Path of the demo's bundle under the runs directory, e.g. "demo/bundle"."""
    from training.recipe import load_recipe

    return f"{load_recipe(ROOT / 'training/recipes/demo.toml', []).name}/bundle"
