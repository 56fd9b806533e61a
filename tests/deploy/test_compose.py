"""docker-compose.yml: valid by its schema, and consistent with the images and the service."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.deploy.conftest import HARD_STOP_S

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    """The file, parsed."""
    return yaml.safe_load((root / "docker-compose.yml").read_text())


def test_it_follows_the_compose_specification(tool: Tool) -> None:
    done = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
    assert done.returncode == 0, done.stdout


def test_yaml_is_tidy(tool: Tool) -> None:
    done = tool("yamllint", "--strict", "docker-compose.yml", "k8s")
    assert done.returncode == 0, done.stdout


def test_variables_are_settings_and_make_valid_ones(
    compose: dict[str, Any], setting_names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = compose["services"]["service"]["environment"]
    assert set(environment) <= setting_names
    for name, value in (environment | {"GTIREC_HOST": "0.0.0.0"}).items():
        monkeypatch.setenv(name, value)
    assert Settings().allow_anonymous


def test_the_port_is_published_on_this_machine_only(compose: dict[str, Any]) -> None:
    inside = Settings.model_fields["port"].default
    assert compose["services"]["service"]["ports"] == [f"127.0.0.1:${{PORT:-8000}}:{inside}"]
    assert all("ports" not in service for name, service in compose["services"].items() if name != "service")


def test_targets_exist(compose: dict[str, Any], root: Path) -> None:
    stages = set(re.findall(r"(?m)^FROM \S+ AS (\S+)", (root / "Dockerfile").read_text()))
    targets = {s["build"]["target"] for s in compose["services"].values() if "build" in s}
    assert targets == {"cpu", "training"}
    assert targets <= stages


def test_the_service_waits_for_redis_and_the_bundle(compose: dict[str, Any]) -> None:
    waits = compose["services"]["service"]["depends_on"]
    assert waits["redis"]["condition"] == "service_healthy"
    assert waits["train-demo"]["condition"] == "service_completed_successfully"
    assert "healthcheck" in compose["services"]["redis"]


def test_the_service_reads_the_bundle_that_the_training_writes(
    compose: dict[str, Any], root: Path, demo_bundle: str
) -> None:
    training, service = compose["services"]["train-demo"], compose["services"]["service"]
    command = training["command"]
    recipe = command[command.index("--config") + 1]
    assert (root / "training/recipes" / Path(recipe).name).is_file()
    runs = command[command.index("--runs-dir") + 1]
    assert training["volumes"] == [f"runs:{runs}"]
    assert service["volumes"] == [f"runs:{runs}:ro"]
    assert service["environment"]["GTIREC_BUNDLE"] == f"{runs}/{demo_bundle}"


def test_the_redis_url_names_the_redis_service(compose: dict[str, Any]) -> None:
    assert compose["services"]["service"]["environment"]["GTIREC_REDIS_URL"] == "redis://redis:6379/0"
    command = compose["services"]["redis"]["command"]
    assert command[command.index("--appendfsync") + 1] == "always"


def test_stopping_leaves_time_for_requests_in_flight(compose: dict[str, Any]) -> None:
    fields = Settings.model_fields
    needed = fields["drain_delay_s"].default + fields["shutdown_timeout_s"].default + HARD_STOP_S
    assert float(compose["services"]["service"]["stop_grace_period"].rstrip("s")) >= needed


def test_volumes_are_declared_and_used(compose: dict[str, Any]) -> None:
    used = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
    }
    assert used == set(compose["volumes"])
