"""docker-compose.yml: valid by its schema, and consistent with the images and the service."""

from __future__ import annotations

import json
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
SERVICES = ("service", "service-gpu")


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


@pytest.mark.parametrize("name", SERVICES)
def test_variables_are_settings_and_make_valid_ones(
    compose: dict[str, Any], name: str, setting_names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = compose["services"][name]["environment"]
    assert set(environment) <= setting_names
    for variable, value in (environment | {"GTIREC_HOST": "0.0.0.0"}).items():
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    settings = Settings()
    assert settings.allow_anonymous
    assert settings.api_key is None


def test_every_port_is_published_on_this_machine_only(compose: dict[str, Any]) -> None:
    inside = Settings.model_fields["port"].default
    for name in SERVICES:
        assert compose["services"][name]["ports"] == [f"127.0.0.1:${{PORT:-8000}}:{inside}"]
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_plain_up_starts_what_the_demo_needs(compose: dict[str, Any]) -> None:
    plain = {name for name, service in compose["services"].items() if not service.get("profiles")}
    assert plain == {"redis", "train-demo", "service"}


def test_targets_exist(compose: dict[str, Any], root: Path) -> None:
    stages = set(re.findall(r"(?m)^FROM \S+ AS (\S+)", (root / "Dockerfile").read_text()))
    builds = {s["image"]: s["build"]["target"] for s in compose["services"].values() if "build" in s}
    assert builds == {f"gti-rec:{target}": target for target in ("cpu", "gpu", "training")}
    assert set(builds.values()) <= stages


@pytest.mark.parametrize("name", ["redis", "train-demo", "service", "service-gpu", "prometheus", "grafana"])
def test_containers_are_hardened(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] in ("unless-stopped", "on-failure:3")


@pytest.mark.parametrize("name", SERVICES)
def test_the_service_waits_for_redis_and_the_bundle(compose: dict[str, Any], name: str) -> None:
    waits = compose["services"][name]["depends_on"]
    assert waits["redis"]["condition"] == "service_healthy"
    assert waits["train-demo"]["condition"] == "service_completed_successfully"
    assert "healthcheck" in compose["services"]["redis"]


@pytest.mark.parametrize("name", SERVICES)
def test_the_service_reads_the_bundle_that_the_training_writes(
    compose: dict[str, Any], name: str, root: Path, demo_bundle: str
) -> None:
    training, service = compose["services"]["train-demo"], compose["services"][name]
    command = training["command"]
    recipe = command[command.index("--config") + 1]
    assert (root / "training/recipes" / Path(recipe).name).is_file()
    runs = command[command.index("--runs-dir") + 1]
    assert f"runs:{runs}" in training["volumes"]
    assert f"runs:{runs}:ro" in service["volumes"]
    assert service["environment"]["GTIREC_BUNDLE"] == f"{runs}/{demo_bundle}"


def test_what_images_write_to_is_writable(compose: dict[str, Any], root: Path) -> None:
    """A read-only root needs a volume or a tmpfs at every VOLUME of the image."""
    text = (root / "Dockerfile").read_text()
    volumes = {name for line in re.findall(r"(?m)^VOLUME (.+)$", text) for name in json.loads(line)}
    for name in (*SERVICES, "train-demo"):
        service = compose["services"][name]
        writable = {v.split(":")[1] for v in service["volumes"] if not v.endswith(":ro")}
        assert writable <= volumes
        assert "/cache" in writable
        assert "/tmp" in service["tmpfs"]


def test_the_redis_url_names_the_redis_service(compose: dict[str, Any]) -> None:
    assert compose["services"]["service"]["environment"]["GTIREC_REDIS_URL"] == "redis://redis:6379/0"
    command = compose["services"]["redis"]["command"]
    assert command[command.index("--appendfsync") + 1] == "always"


def test_stopping_leaves_time_for_requests_in_flight(compose: dict[str, Any]) -> None:
    fields = Settings.model_fields
    needed = fields["drain_delay_s"].default + fields["shutdown_timeout_s"].default + HARD_STOP_S
    assert float(compose["services"]["service"]["stop_grace_period"].rstrip("s")) >= needed


def test_volumes_and_configs_are_declared_and_used(compose: dict[str, Any], root: Path) -> None:
    sources = {
        v.split(":")[0] for service in compose["services"].values() for v in service.get("volumes", [])
    }
    files = {source for source in sources if source.startswith(".")}
    assert all((root / file).is_file() for file in files)
    assert sources - files == set(compose["volumes"])
    services = compose["services"].values()
    configs = {config["source"] for service in services for config in service.get("configs", [])}
    assert configs == set(compose["configs"])


def test_prometheus_and_grafana_look_where_things_are(compose: dict[str, Any]) -> None:
    scrape = yaml.safe_load(compose["configs"]["prometheus"]["content"])
    (job,) = scrape["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert set(discovery["names"]) == set(SERVICES)
    assert discovery["port"] == Settings.model_fields["port"].default
    (source,) = yaml.safe_load(compose["configs"]["grafana-datasource"]["content"])["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load(compose["configs"]["grafana-dashboards"]["content"])["providers"]
    (mount,) = [v for v in compose["services"]["grafana"]["volumes"] if v.startswith(".")]
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mount.split(":")[1] == home
    assert home.startswith(provider["options"]["path"])
