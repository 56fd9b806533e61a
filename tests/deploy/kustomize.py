"""Renders kustomizations with the real kustomize: by itself on PATH, or the one inside kubectl."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]


def render(directory: Path) -> list[Manifest]:
    """All manifests of a kustomization; skips the test where neither tool is there."""
    if kustomize := shutil.which("kustomize"):
        command = [kustomize, "build"]
    elif kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize"]
    else:
        pytest.skip("neither kustomize nor kubectl is on PATH")
    done = subprocess.run([*command, directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def compose(directory: Path, base: Path, components: list[Path]) -> Path:
    """Write a kustomization into `directory` that adds components to a base; returns the directory."""

    def relative(path: Path) -> str:
        return os.path.relpath(path, directory)

    plan = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "gti-rec",
        "resources": [relative(base)],
        "components": [relative(path) for path in components],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(plan))
    return directory
