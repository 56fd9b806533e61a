"""Release habits: one version everywhere, a changelog, licences of what is shipped, one vLLM."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from service.engine.vllm_version import SUPPORTED_VLLM, check_version
from service.errors import EngineError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """requirements/release.py"""
    monkeypatch.syspath_prepend(str(ROOT / "requirements"))
    return __import__("release")


def test_version_changelog_and_images_agree(release: ModuleType) -> None:
    assert release._version_problems() == []


def test_every_shipped_package_has_its_licence_listed(release: ModuleType) -> None:
    assert release._licence_problems() == []


def test_a_changed_version_is_noticed(
    release: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(release, "CHANGELOG", tmp_path / "CHANGELOG.md")
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 9.9.9\n")
    assert "9.9.9" in release._version_problems()[0]
    monkeypatch.setattr(release, "LICENCES", tmp_path / "LICENCES.md")
    (tmp_path / "LICENCES.md").write_text(release.HEADER)
    assert "make licences" in release._licence_problems()[0]


def test_pyproject_and_locks_have_the_vllm_that_the_engines_are_written_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = re.findall(r"vllm(?:-cpu)?==(\S+?)(?:\"|$)", "\n".join(extras["cpu"] + extras["gpu"]), re.M)
    for lock in ("cpu-x86_64", "cpu-aarch64", "gpu"):
        pinned += re.findall(r"(?m)^vllm(?:-cpu)?==(\S+)", (ROOT / f"requirements/{lock}.txt").read_text())
    assert len(pinned) == 5
    assert {version.rpartition(".")[0] for version in pinned} == {SUPPORTED_VLLM}


def test_the_installed_vllm_is_that_one() -> None:
    """Fails, not skips, where another vLLM is installed: its internals have not been read."""
    pytest.importorskip("vllm", reason="no vLLM on this machine; the torch engine is used")
    check_version()


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0"])
def test_another_vllm_is_refused_with_what_to_do(version: str) -> None:
    with pytest.raises(EngineError, match=f"found {version}.*install vllm==0.32.0"):
        check_version(version)
