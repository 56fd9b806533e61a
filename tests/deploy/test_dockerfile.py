"""The Dockerfile: linted, and true to the repository it copies from."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest

from service.settings import Settings

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def dockerfile(root: Path) -> str:
    """Its text, continued lines joined."""
    return (root / "Dockerfile").read_text().replace("\\\n", " ")


@pytest.fixture(scope="module")
def stages(dockerfile: str) -> dict[str, str]:
    """Name of every stage -> its text, that of the stages it starts from included."""
    texts: dict[str, str] = {}
    for part in re.split(r"(?m)^(?=FROM )", dockerfile)[1:]:
        source, name = re.findall(r"^FROM (\S+) AS (\S+)", part)[0]
        texts[name] = texts.get(source, "") + part
    return texts


def test_hadolint_finds_nothing(tool: Tool) -> None:
    done = tool("hadolint", "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_old_builders_can_read_it(dockerfile: str) -> None:
    assert "<<" not in dockerfile
    assert "--link" not in dockerfile
    assert "--mount" not in dockerfile


def test_everything_copied_is_there_and_not_ignored(root: Path, dockerfile: str) -> None:
    kept = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for sources in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", dockerfile):
        for source in sources.split():
            assert (root / source).exists(), source
            first = source.split("/")[0]
            assert first in kept or any(fnmatch(source, pattern) for pattern in kept), source


def test_variables_are_settings_of_the_service(dockerfile: str, setting_names: set[str]) -> None:
    used = set(re.findall(r"GTIREC_[A-Z_]+", re.sub(r"(?m)^#.*$", "", dockerfile)))
    assert used
    assert used <= setting_names


@pytest.mark.parametrize("target", ["cpu", "gpu", "training"])
def test_images_run_as_an_ordinary_user_in_exec_form(stages: dict[str, str], target: str) -> None:
    text = stages[target]
    assert re.findall(r"(?m)^USER (\S+)", text)[-1] == "10001:10001"
    assert re.findall(r"(?m)^ENTRYPOINT (.*)", text)[-1].startswith('["tini", "--", "python", "-m"')


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_service_images_listen_where_they_say_and_tell_their_health(
    stages: dict[str, str], target: str
) -> None:
    text = stages[target]
    port = Settings.model_fields["port"].default
    assert f"EXPOSE {port}" in text
    assert f"GTIREC_PORT={port}" in text
    assert "/readyz" in re.findall(r"(?m)^HEALTHCHECK (.*)", text)[-1]


def test_cpu_is_the_default_target(stages: dict[str, str]) -> None:
    assert list(stages)[-1] == "cpu"
