"""requirements/install.py: which lock fits which machine, and when nothing is to be done."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def _load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "requirements"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__(name)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """requirements/machine.py"""
    return _load("machine", monkeypatch)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """requirements/install.py"""
    return _load("install", monkeypatch)


@pytest.mark.parametrize(
    ("changes", "lock", "reason"),
    [
        ({}, "cpu-x86_64.txt", None),
        ({"arch": "aarch64", "cpu_flags": frozenset()}, "cpu-aarch64.txt", None),
        ({"system": "Darwin", "arch": "arm64"}, "torch-only.txt", "Darwin"),
        ({"arch": "riscv64"}, "torch-only.txt", "riscv64"),
        ({"cpu_flags": frozenset({"sse4_2"})}, "torch-only.txt", "AVX2"),
        ({"libc": ("glibc", (2, 28))}, "torch-only.txt", "glibc 2.31"),
        ({"libc": ("", ())}, "torch-only.txt", "glibc"),
        ({"has_libnuma": False}, "torch-only.txt", "libnuma1"),
    ],
)
def test_the_lock_fits_the_machine(
    machine: ModuleType, changes: dict[str, object], lock: str, reason: str | None
) -> None:
    usual = machine.Machine("Linux", "x86_64", ("glibc", (2, 36)), frozenset({"avx2"}), True)
    this = dataclasses.replace(usual, **changes)
    assert machine.choose_lock(this).name == lock
    assert machine.choose_lock(this).is_file()
    found = machine.why_no_vllm(this)
    assert found is None if reason is None else reason in found


def test_the_fingerprint_follows_the_lock(install: ModuleType, tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("a==1\n")
    before = install.fingerprint([lock])
    assert install.fingerprint([lock]) == before
    lock.write_text("a==2\n")
    assert install.fingerprint([lock]) != before


def test_an_unchanged_environment_is_left_alone(
    install: ModuleType, machine: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = machine.Machine("Linux", "x86_64", ("glibc", (2, 36)), frozenset({"avx2"}), True)
    monkeypatch.setattr(install.Environment, "fits", lambda self: True)
    (tmp_path / install.STAMP).write_text(install.fingerprint([machine.choose_lock(this)]) + "\n")
    install.install(tmp_path, with_dev=False, machine=this)
    assert sorted(path.name for path in tmp_path.iterdir()) == [install.STAMP]


def test_a_folder_that_is_no_environment_is_not_deleted(install: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(install.InstallError, match="no virtual environment"):
        install.Environment(tmp_path).create()
    assert (tmp_path / "precious").exists()


def test_make_says_which_python_is_missing(tmp_path: Path) -> None:
    for name in ("bash", "sh", "make"):
        (tmp_path / name).symlink_to(Path("/bin") / name if name != "make" else "/usr/bin/make")
    if not (tmp_path / "make").exists():
        pytest.skip("make is not where Linux has it")
    environment = {"PATH": str(tmp_path)}
    done = subprocess.run(
        [tmp_path / "make", "install"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "no Python 3.11 or 3.12 was found" in done.stderr
