"""Renders our kustomizations as `kustomize build` does, for the few features that they use.

A key that is not known here is an error, so that nothing is silently left out. Where the real tool is
on PATH, a test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
KEYS = {"apiVersion", "kind", "namespace", "labels", "resources", "patches"}
# Lists whose elements are merged by a key of theirs instead of being replaced as a whole.
MERGE_KEYS = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name"}
WITHOUT_NAMESPACE = {"Namespace"}


def render(directory: Path) -> list[Manifest]:
    """All manifests of a kustomization, patched and labelled."""
    plan = yaml.safe_load((directory / "kustomization.yaml").read_text())
    if unknown := set(plan) - KEYS:
        raise ValueError(f"{directory}: the test renderer does not know {sorted(unknown)}")
    manifests = [manifest for name in plan["resources"] for manifest in _resource(directory / name)]
    for patch in plan.get("patches", []):
        _apply(yaml.safe_load((directory / patch["path"]).read_text()), manifests)
    for manifest in manifests:
        for labels in plan.get("labels", []):
            manifest["metadata"].setdefault("labels", {}).update(labels["pairs"])
        if "namespace" in plan and manifest["kind"] not in WITHOUT_NAMESPACE:
            manifest["metadata"]["namespace"] = plan["namespace"]
    return manifests


def _resource(path: Path) -> list[Manifest]:
    return render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _apply(patch: Manifest, manifests: list[Manifest]) -> None:
    """Strategic merge into the one manifest of the same kind and name."""
    wanted = (patch["kind"], patch["metadata"]["name"])
    (target,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == wanted]
    _merge(target, patch)


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif key in MERGE_KEYS and isinstance(target.get(key), list):
            _merge_list(target[key], value, MERGE_KEYS[key])
        else:
            target[key] = value


def _merge_list(target: list[dict[str, Any]], patch: list[dict[str, Any]], key: str) -> None:
    by_name = {element[key]: element for element in target}
    for element in patch:
        if element[key] in by_name:
            _merge(by_name[element[key]], element)
        else:
            target.append(element)
