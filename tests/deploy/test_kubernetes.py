"""k8s/: everything renders, is valid, restricted, and consistent with itself, the images and the service."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft7Validator

from service.bundle import load_bundle
from service.settings import Settings
from tests.deploy.conftest import HARD_STOP_S, ROOT
from tests.deploy.kustomize import Manifest, compose, render

BASE = ROOT / "k8s/base"
COMPONENTS = sorted(path for path in (ROOT / "k8s/components").iterdir())
OVERLAYS = sorted(path for path in (ROOT / "k8s/overlays").iterdir())
# What exclude each other: two sources of the bundle, two autoscalers.
EVERYTHING = (
    "blue-green",
    "nightly-batch",
    "bundle-oci",
    "network-policies",
    "monitoring",
    "autoscaling-keda",
    "ingress",
)
# A night's files go to the store that bundle-s3 names.
ALSO_NEEDED = {"nightly-batch-s3": "bundle-s3"}


def needed(component: Path) -> list[Path]:
    """A component, and the one that it cannot do without."""
    also = ALSO_NEEDED.get(component.name)
    return [component, *([component.with_name(also)] if also else [])]


CASES: dict[str, tuple[Path, list[Path]]] = {
    "base": (BASE, []),
    **{f"overlays/{path.name}": (path, []) for path in OVERLAYS},
    **{f"base + {path.name}": (BASE, needed(path)) for path in COMPONENTS},
    "base + everything": (BASE, [ROOT / "k8s/components" / name for name in EVERYTHING]),
}
POD_OWNERS = ("Deployment", "StatefulSet", "Job", "CronJob")
CUSTOM_SCHEMAS = {path.stem: path for path in (ROOT / "tests/deploy/schemas").glob("*.json")}
OTHERS_IMAGES = {"redis", "rclone/rclone", "gti-rec-bundle"}


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    """What is rendered."""
    return request.param


@pytest.fixture(scope="module")
def manifests(name: str, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """It, rendered."""
    base, components = CASES[name]
    if not components:
        return render(base)
    return render(compose(tmp_path_factory.mktemp("kustomization"), base, components))


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [m for m in of_kind(manifests, kind) if m["metadata"]["name"] == name]
    return found


def names_of(manifests: list[Manifest], kind: str) -> set[str]:
    return {manifest["metadata"]["name"] for manifest in of_kind(manifests, kind)}


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name of the owner, pod template."""
    for owner in of_kind(manifests, *POD_OWNERS):
        spec = owner["spec"]["jobTemplate"]["spec"] if owner["kind"] == "CronJob" else owner["spec"]
        yield owner["metadata"]["name"], spec["template"]


def containers(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Pod spec, container; init containers included."""
    for _, pod in pods(manifests):
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            yield pod["spec"], container


def settings_maps(manifests: list[Manifest]) -> list[Manifest]:
    """ConfigMaps that hold the service's settings."""
    return [
        m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"] in ("gti-rec", "gti-rec-green")
    ]


def is_selected(selector: Manifest, labels: dict[str, str]) -> bool:
    """Kubernetes' label selector, for the operators that we use."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return all(labels.get(expression["key"]) in expression["values"] for expression in expressions)


# --- valid ------------------------------------------------------------------------------------------


def test_the_api_accepts_it(manifests: list[Manifest]) -> None:
    version = kubernetes_validate.latest_version()
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM_SCHEMAS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_custom_resources_follow_their_schemas(manifests: list[Manifest]) -> None:
    for manifest in of_kind(manifests, *CUSTOM_SCHEMAS):
        schema = json.loads(CUSTOM_SCHEMAS[manifest["kind"]].read_text())
        errors = [
            f"{list(e.absolute_path)}: {e.message}" for e in Draft7Validator(schema).iter_errors(manifest)
        ]
        assert not errors


def test_the_schemas_notice_a_wrong_field(tmp_path: Path) -> None:
    components = [ROOT / "k8s/components" / name for name in EVERYTHING]
    everything = render(compose(tmp_path, BASE, components))
    for kind, path in CUSTOM_SCHEMAS.items():
        example = of_kind(everything, kind)[0]
        example["spec"]["misspelt"] = 1
        assert not Draft7Validator(json.loads(path.read_text())).is_valid(example), kind


def test_names_are_used_once(manifests: list[Manifest]) -> None:
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(names)) == len(names)


# --- consistent with itself ---------------------------------------------------------------------------


def test_selectors_find_pods(manifests: list[Manifest]) -> None:
    labels = [pod["metadata"]["labels"] for _, pod in pods(manifests)]
    for manifest in of_kind(manifests, "Service", "Deployment", "StatefulSet", "PodDisruptionBudget"):
        selector = manifest["spec"]["selector"]
        if manifest["kind"] == "Service":
            selector = {"matchLabels": selector}
        num_found = sum(is_selected(selector, pod) for pod in labels)
        is_shared = manifest["kind"] == "PodDisruptionBudget"
        assert num_found >= 1 if is_shared else num_found == 1, manifest["metadata"]["name"]


def test_references_lead_somewhere(manifests: list[Manifest]) -> None:
    accounts, maps = names_of(manifests, "ServiceAccount"), names_of(manifests, "ConfigMap")
    claims = names_of(manifests, "PersistentVolumeClaim")
    for owner, pod in pods(manifests):
        spec = pod["spec"]
        assert spec["serviceAccountName"] in accounts, owner
        for volume in spec.get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims
    templates = {
        claim["metadata"]["name"]
        for owner in of_kind(manifests, "StatefulSet")
        for claim in owner["spec"]["volumeClaimTemplates"]
    }
    for spec, container in containers(manifests):
        for source in container.get("envFrom", []):
            assert source.get("configMapRef", {}).get("name") in {*maps, None}
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in spec.get("volumes", [])} | templates
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]["name"]
        assert "replicas" not in named(manifests, "Deployment", target)["spec"]


def test_no_claim_is_left_unused(manifests: list[Manifest]) -> None:
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, pod in pods(manifests)
        for volume in pod["spec"].get("volumes", [])
        if "persistentVolumeClaim" in volume
    }
    assert names_of(manifests, "PersistentVolumeClaim") == used


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


def test_bundles_are_fetched_before_they_are_verified(manifests: list[Manifest]) -> None:
    for _, pod in pods(manifests):
        steps = [container["name"] for container in pod["spec"].get("initContainers", [])]
        if "verify-bundle" in steps:
            at = steps.index("verify-bundle")
            assert steps[:at] in ([], ["fetch-bundle"])
            assert steps[at + 1 :] in ([], ["histories"], ["histories", "recommend"])
        for container in pod["spec"]["containers"]:
            mounts = [m for m in container.get("volumeMounts", []) if m["name"] == "bundle"]
            assert all(m.get("readOnly") for m in mounts) or container["name"] == "training"


# --- monitoring, network, ingress ---------------------------------------------------------------------


def test_the_monitor_finds_the_service(manifests: list[Manifest]) -> None:
    for monitor in of_kind(manifests, "ServiceMonitor"):
        found = [
            service
            for service in of_kind(manifests, "Service")
            if is_selected(monitor["spec"]["selector"], service["metadata"].get("labels", {}))
        ]
        assert [service["metadata"]["name"] for service in found] == ["gti-rec"]
        ports = {port["name"] for port in found[0]["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


def test_every_pod_is_walled_in_where_policies_are(manifests: list[Manifest]) -> None:
    policies = of_kind(manifests, "NetworkPolicy")
    for owner, pod in pods(manifests) if policies else ():
        applying = [p for p in policies if is_selected(p["spec"]["podSelector"], pod["metadata"]["labels"])]
        assert "gti-rec-deny-all" in [policy["metadata"]["name"] for policy in applying], owner
        assert len(applying) >= 2, f"{owner} may talk to nobody"


def test_the_ingress_publishes_the_service_and_nothing_internal(manifests: list[Manifest]) -> None:
    for ingress in of_kind(manifests, "Ingress"):
        paths = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
        for path in paths:
            backend = path["backend"]["service"]
            service = named(manifests, "Service", backend["name"])
            assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
        prefixes = [path["path"] for path in paths if path["pathType"] == "Prefix"]
        for internal in ("/metrics", "/admin", "/livez", "/readyz"):
            assert not [prefix for prefix in prefixes if internal.startswith(prefix)]
        limits = ingress["metadata"]["annotations"]["traefik.ingress.kubernetes.io/router.middlewares"]
        wanted = {re.sub("^gti-rec-|@kubernetescrd$", "", entry.strip()) for entry in limits.split(",")}
        assert wanted == names_of(manifests, "Middleware")


# --- consistent with the service ------------------------------------------------------------------------


def test_the_service_listens_on_the_port_it_declares(manifests: list[Manifest]) -> None:
    services = [c for _, c in containers(manifests) if c["name"] == "service"]
    assert services
    for service in services:
        assert service["ports"][0]["containerPort"] == Settings.model_fields["port"].default


def test_probes_ask_routes_that_exist(manifests: list[Manifest]) -> None:
    from service.api.routes import operations

    routes = {route.path for route in operations.router.routes}  # pyright: ignore[reportAttributeAccessIssue]
    for _, container in containers(manifests):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if check := container.get(probe, {}).get("httpGet"):
                assert check["path"] in routes
    for monitor in of_kind(manifests, "ServiceMonitor"):
        assert {endpoint["path"] for endpoint in monitor["spec"]["endpoints"]} <= routes


def test_settings_are_known_and_valid(
    manifests: list[Manifest], setting_names: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_maps(manifests)
    for config in settings_maps(manifests):
        assert set(config["data"]) <= setting_names
        for variable in setting_names:
            monkeypatch.delenv(variable, raising=False)
        for variable, value in config["data"].items():
            monkeypatch.setenv(variable, value)
        settings = Settings(host="127.0.0.1")
        if settings.redis_url is not None:
            host = settings.redis_url.get_secret_value().removeprefix("redis://").split(":")[0]
            assert host in names_of(manifests, "Service")
            continue
        for _, container in containers(manifests):
            if container["name"] in ("service", "seed", "histories"):
                secrets = [s["secretRef"]["name"] for s in container["envFrom"] if "secretRef" in s]
                assert "gti-rec-redis" in secrets


def test_stopping_leaves_time_for_requests_in_flight(manifests: list[Manifest]) -> None:
    data = named(manifests, "ConfigMap", "gti-rec")["data"]
    for deployment in of_kind(manifests, "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        drain_s = float(data["GTIREC_DRAIN_DELAY_S"]) + float(data["GTIREC_SHUTDOWN_TIMEOUT_S"])
        assert pod["terminationGracePeriodSeconds"] >= float(seconds) + drain_s + HARD_STOP_S
        assert float(seconds) > container["readinessProbe"]["periodSeconds"]


def test_images_are_those_that_the_dockerfile_builds(manifests: list[Manifest], root: Path) -> None:
    stages = set(re.findall(r"(?m)^FROM \S+ AS (\S+)", (root / "Dockerfile").read_text()))
    for _, container in containers(manifests):
        repository, _, tag = container["image"].rpartition(":")
        is_ours = repository.rpartition("/")[2] == "gti-rec" and tag in stages
        assert is_ours or repository in OTHERS_IMAGES, container["image"]
        assert tag, container["image"]


def test_commands_of_our_images_exist(manifests: list[Manifest]) -> None:
    from typer.testing import CliRunner

    from service.__main__ import app

    commands = [c["args"] for _, c in containers(manifests) if c["name"] == "seed"]
    for _, container in containers(manifests):
        script = (container.get("command") or [""])[-1]
        commands += [
            words.split() for words in re.findall(r"python -m service ((?:[a-z][a-z-]* ?)+)", script)
        ]
    assert commands
    for command in commands:
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0, command


# --- restricted -----------------------------------------------------------------------------------------


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
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), container["name"]
        assert "memory" in container["resources"]["limits"], container["name"]
    for owner in of_kind(manifests, "Deployment", "StatefulSet"):
        for container in owner["spec"]["template"]["spec"]["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), container["name"]


# --- single overlays and components -----------------------------------------------------------------------


def test_the_demo_serves_what_it_trains(root: Path, demo_bundle: str) -> None:
    manifests = render(root / "k8s/overlays/cpu-demo")
    container = named(manifests, "Job", "gti-rec-train-demo")["spec"]["template"]["spec"]["containers"][0]
    recipe = container["args"][container["args"].index("--config") + 1]
    assert (root / "training/recipes" / Path(recipe).name).is_file()
    runs = container["args"][container["args"].index("--runs-dir") + 1]
    assert {"name": "bundle", "mountPath": runs} in container["volumeMounts"]
    config = named(manifests, "ConfigMap", "gti-rec")
    assert config["data"]["GTIREC_BUNDLE"] == f"/bundle/{demo_bundle}"


def test_the_gpu_overlay_asks_for_a_gpu_and_its_image(root: Path) -> None:
    manifests = render(root / "k8s/overlays/gpu")
    (service,) = [c for _, c in containers(manifests) if c["name"] == "service"]
    assert service["image"] == "gti-rec:gpu"
    assert service["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_production_keeps_no_redis_and_no_password_in_the_open(root: Path) -> None:
    manifests = render(root / "k8s/overlays/production")
    assert not of_kind(manifests, "StatefulSet", "Secret")
    assert "GTIREC_REDIS_URL" not in named(manifests, "ConfigMap", "gti-rec")["data"]


def test_blue_and_green_are_alike_but_for_bundle_and_colour(tmp_path: Path) -> None:
    components = [ROOT / "k8s/components" / name for name in ("blue-green", "bundle-s3")]
    manifests = render(compose(tmp_path, BASE, components))
    specs: list[dict[str, Any]] = []
    for name, colour in (("gti-rec", "blue"), ("gti-rec-green", "green")):
        deployment = named(manifests, "Deployment", name)
        assert deployment["spec"]["selector"]["matchLabels"]["gti-rec/colour"] == colour
        pod = deployment["spec"]["template"]
        for container in pod["spec"]["initContainers"][1:] + pod["spec"]["containers"]:
            assert container["envFrom"].pop(0) == {"configMapRef": {"name": name}}
        for spread in pod["spec"]["topologySpreadConstraints"]:
            spread["labelSelector"]["matchLabels"].pop("gti-rec/colour", None)
        specs.append(pod["spec"])
    assert specs[0] == specs[1]
    live = named(manifests, "Service", "gti-rec")["spec"]["selector"]
    preview = named(manifests, "Service", "gti-rec-preview")["spec"]["selector"]
    assert (live["gti-rec/colour"], preview["gti-rec/colour"]) == ("blue", "green")


def test_a_night_that_is_killed_goes_on_with_the_same_users(tmp_path: Path) -> None:
    """The scripts of nightly-batch, run by a real shell; what they call only notes how it was called."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n[ "$3" = export-events ] || exit 0\n'
        'mkdir -p "$5"; printf "head\\n%s" "$USERS" > "$5/interactions.csv"\n'
    )
    python.chmod(0o755)
    (tmp_path / "batch/old").mkdir(parents=True)
    os.utime(tmp_path / "batch/old", (0, 0))
    nightly = named(
        render(compose(tmp_path, BASE, [ROOT / "k8s/components/nightly-batch"])), "CronJob", "gti-rec-nightly"
    )
    pod = nightly["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    histories, recommend = pod["initContainers"][-1], pod["containers"][0]
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "KEEP_DAYS": "7"}

    def run(container: Manifest, job: str, users: str) -> None:
        script = (
            container["command"][-1]
            .replace("/batch/", f"{tmp_path}/batch/")
            .replace("find /batch", f"find {tmp_path}/batch")
        )
        subprocess.run(
            ["sh", "-ec", script], env={**environment, "JOB_NAME": job, "USERS": users}, check=True
        )

    for _ in range(2):
        run(histories, "night-1", "a,x,1\n")
        run(recommend, "night-1", "")
    run(histories, "night-2", "")
    run(recommend, "night-2", "")
    folder = f"{tmp_path}/batch/night-1"
    answer = f"-m service batch --input {folder}/events/interactions.csv --output {folder}/recommendations"
    export = f"-m service export-events --output {tmp_path}/batch/night"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [f"{export}-1/events", answer, answer, f"{export}-2/events"]
    assert sorted(path.name for path in (tmp_path / "batch").iterdir()) == ["night-1", "night-2"]


def test_the_store_is_copied_whole_and_the_manifest_last(tmp_path: Path, small_bundle_dir: Path) -> None:
    """The commands of bundle-s3, run by a real rclone on a local remote."""
    if shutil.which("rclone") is None:
        pytest.skip("rclone is not on PATH (on Debian: apt-get install rclone)")
    (fetch,) = [
        patch["value"]
        for patch in yaml.safe_load((ROOT / "k8s/components/bundle-s3/fetch.yaml").read_text())
        if patch["path"].endswith("initContainers/0")
    ]
    script = fetch["command"][-1].replace(" /bundle", f" {tmp_path}/bundle")
    names = {entry["name"]: entry["value"] for entry in fetch["env"]}
    environment = {**os.environ, **names, "RCLONE_CONFIG_STORE_TYPE": "local"}
    environment["BUNDLE_S3_PATH"] = str(small_bundle_dir)
    first, second = script.strip().splitlines()
    subprocess.run(["sh", "-ec", first], env=environment, check=True)
    assert not (tmp_path / "bundle/manifest.json").exists()
    subprocess.run(["sh", "-ec", second], env=environment, check=True)
    load_bundle(tmp_path / "bundle")
