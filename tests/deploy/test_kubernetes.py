"""k8s/: every overlay renders, is valid, restricted, and consistent with itself and the service."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.deploy.conftest import HARD_STOP_S, ROOT
from tests.deploy.kustomize import render

Tool = Callable[..., subprocess.CompletedProcess[str]]
Manifest = dict[str, Any]
KUSTOMIZATIONS = ["base", *(f"overlays/{path.name}" for path in sorted((ROOT / "k8s/overlays").iterdir()))]
POD_OWNERS = ("Deployment", "StatefulSet", "Job")


@pytest.fixture(scope="module", params=KUSTOMIZATIONS)
def name(request: pytest.FixtureRequest) -> str:
    """A kustomization under k8s/."""
    return request.param


@pytest.fixture(scope="module")
def manifests(name: str, root: Path) -> list[Manifest]:
    """It, rendered."""
    return render(root / "k8s" / name)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def names_of(manifests: list[Manifest], kind: str) -> set[str]:
    return {manifest["metadata"]["name"] for manifest in of_kind(manifests, kind)}


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name of the owner, pod template."""
    for owner in of_kind(manifests, *POD_OWNERS):
        yield owner["metadata"]["name"], owner["spec"]["template"]


def containers(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Pod spec, container; init containers included."""
    for _, pod in pods(manifests):
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            yield pod["spec"], container


def test_the_api_accepts_it(manifests: list[Manifest], tool: Tool, tmp_path: Path) -> None:
    path = tmp_path / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(manifests))
    done = tool("kubernetes-validate", "--strict", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_renders_as_kustomize_renders_it(name: str, manifests: list[Manifest], root: Path) -> None:
    kustomize = shutil.which("kustomize")
    if kustomize is None:
        pytest.skip("kustomize is not on PATH; the test's own renderer was used")
    done = subprocess.run(
        [kustomize, "build", root / "k8s" / name], capture_output=True, text=True, check=True
    )
    key = lambda manifest: (manifest["kind"], manifest["metadata"]["name"])  # noqa: E731
    assert sorted(yaml.safe_load_all(done.stdout), key=key) == sorted(manifests, key=key)


def test_names_are_used_once(manifests: list[Manifest]) -> None:
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(names)) == len(names)


def test_selectors_find_pods(manifests: list[Manifest]) -> None:
    labels = [set(pod["metadata"]["labels"].items()) for _, pod in pods(manifests)]
    for manifest in of_kind(manifests, "Service", "Deployment", "StatefulSet", "PodDisruptionBudget"):
        selector = manifest["spec"]["selector"]
        wanted = set(selector.get("matchLabels", selector).items())
        assert sum(wanted <= pod for pod in labels) == 1, manifest["metadata"]["name"]


def test_references_lead_somewhere(manifests: list[Manifest]) -> None:
    accounts, maps = names_of(manifests, "ServiceAccount"), names_of(manifests, "ConfigMap")
    claims = names_of(manifests, "PersistentVolumeClaim")
    for owner, pod in pods(manifests):
        spec = pod["spec"]
        assert spec["serviceAccountName"] in accounts, owner
        for volume in spec.get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims
    for spec, container in containers(manifests):
        for source in container.get("envFrom", []):
            assert source.get("configMapRef", {}).get("name") in {*maps, None}
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        templates = {
            claim["metadata"]["name"]
            for owner in of_kind(manifests, "StatefulSet")
            for claim in owner["spec"]["volumeClaimTemplates"]
        }
        assert mounted <= {volume["name"] for volume in spec.get("volumes", [])} | templates


def test_named_ports_exist(manifests: list[Manifest]) -> None:
    ports = {port["name"] for _, container in containers(manifests) for port in container.get("ports", [])}
    for service in of_kind(manifests, "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for _, container in containers(manifests):
        own = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            check = container.get(probe, {})
            target = check.get("httpGet") or check.get("tcpSocket")
            assert target is None or target["port"] in own


def test_the_service_listens_on_the_port_it_declares(manifests: list[Manifest]) -> None:
    (service,) = [c for _, c in containers(manifests) if c["name"] == "service"]
    assert service["ports"][0]["containerPort"] == Settings.model_fields["port"].default


def test_pods_are_restricted(manifests: list[Manifest]) -> None:
    for owner, pod in pods(manifests):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, owner
        assert security["runAsUser"] > 0, owner
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        assert pod["spec"]["automountServiceAccountToken"] is False, owner
    for _, container in containers(manifests):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, container["name"]
        assert security["readOnlyRootFilesystem"] is True, container["name"]
        assert security["capabilities"] == {"drop": ["ALL"]}, container["name"]


def test_pods_say_what_they_need_and_how_they_are(manifests: list[Manifest]) -> None:
    for _, container in containers(manifests):
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}, container["name"]
        assert "memory" in container["resources"]["limits"], container["name"]
    for owner in of_kind(manifests, "Deployment", "StatefulSet"):
        for container in owner["spec"]["template"]["spec"]["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), container["name"]


def test_settings_are_known_and_valid(
    manifests: list[Manifest], setting_names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (config,) = of_kind(manifests, "ConfigMap")
    assert set(config["data"]) <= setting_names
    for variable, value in config["data"].items():
        monkeypatch.setenv(variable, value)
    settings = Settings(host="127.0.0.1")
    assert settings.redis_url is not None
    host = settings.redis_url.get_secret_value().removeprefix("redis://").split(":")[0]
    assert host in names_of(manifests, "Service")


def test_stopping_leaves_time_for_requests_in_flight(manifests: list[Manifest]) -> None:
    (config,) = of_kind(manifests, "ConfigMap")
    (deployment,) = of_kind(manifests, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    drain_s = float(config["data"]["GTIREC_DRAIN_DELAY_S"])
    needed = drain_s + float(config["data"]["GTIREC_SHUTDOWN_TIMEOUT_S"]) + HARD_STOP_S
    assert pod["terminationGracePeriodSeconds"] >= needed
    assert drain_s > pod["containers"][0]["readinessProbe"]["periodSeconds"]


def test_images_are_those_that_the_dockerfile_builds(manifests: list[Manifest], root: Path) -> None:
    stages = set(re.findall(r"(?m)^FROM \S+ AS (\S+)", (root / "Dockerfile").read_text()))
    for _, container in containers(manifests):
        repository, _, tag = container["image"].partition(":")
        assert repository == "redis" or (repository == "gti-rec" and tag in stages), container["image"]


def test_the_demo_serves_what_it_trains(root: Path, demo_bundle: str) -> None:
    manifests = render(root / "k8s/overlays/cpu-demo")
    (config,) = of_kind(manifests, "ConfigMap")
    (job,) = of_kind(manifests, "Job")
    container = job["spec"]["template"]["spec"]["containers"][0]
    recipe = container["args"][container["args"].index("--config") + 1]
    assert (root / "training/recipes" / Path(recipe).name).is_file()
    runs = container["args"][container["args"].index("--runs-dir") + 1]
    assert {"name": "bundle", "mountPath": runs} in container["volumeMounts"]
    assert config["data"]["GTIREC_BUNDLE"] == f"/bundle/{demo_bundle}"
