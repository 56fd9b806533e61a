"""Dashboard, alert rules and autoscaling: they ask for metrics, labels and values that the code has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml

from tests.deploy.conftest import ROOT

MONITORING = ROOT / "k8s/components/monitoring"
# What Prometheus and Kubernetes add to every series.
ADDED_LABELS = {"namespace", "job", "instance", "pod", "le"}


def known_metrics() -> dict[str, set[str]]:
    """Name of every series of ours -> its labels."""
    from service.observability import metrics

    known: dict[str, set[str]] = {"process_resident_memory_bytes": set()}
    for value in vars(metrics).values():
        if isinstance(value, prometheus_client.metrics.MetricWrapperBase):
            labels = set(value._labelnames)
            for suffix in ("", "_total", "_bucket", "_sum", "_count"):
                known[value._name + suffix] = labels
    return known


def rules() -> list[dict[str, Any]]:
    """Every rule of the PrometheusRule."""
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    """Where a PromQL expression stands, and the expression."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    keda = yaml.safe_load((ROOT / "k8s/components/autoscaling-keda/scaled-object.yaml").read_text())
    for trigger in keda["spec"]["triggers"]:
        yield "KEDA", trigger["metadata"]["query"]
    hpa = yaml.safe_load((ROOT / "k8s/components/autoscaling-hpa/hpa.yaml").read_text())
    for metric in hpa["spec"]["metrics"]:
        yield "HPA", metric["pods"]["metric"]["name"]


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_metrics_and_labels_exist(where: str, query: str) -> None:
    known = known_metrics()
    used = re.findall(r"\b((?:gtirec|process)_\w+)(?:\{([^}]*)\})?", query)
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert used or any(name in query for name in recorded), where
    labels: set[str] = set()
    for name, selector in used:
        assert name in known, f"{where}: no metric is called {name}"
        labels |= known[name]
        named = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert named <= known[name] | ADDED_LABELS, f"{where}: {name} has no label {named}"
    grouped = {label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")}
    assert grouped <= labels | ADDED_LABELS, where
    assert set(re.findall(r"gtirec:[\w:]+", query)) <= recorded


def test_outcomes_and_sources_are_those_that_the_service_reports() -> None:
    from typing import get_args

    from service.api.middleware import OUTCOMES
    from service.recommender import Source

    values: dict[str, set[str]] = {"outcome": {*OUTCOMES.values(), "ok", "invalid", "error"}}
    values["source"] = set(get_args(Source))
    for where, query in queries():
        for label, found in re.findall(r'\b(outcome|source)(?:=~|!=|=)"([^"]*)"', query):
            assert set(found.split("|")) <= values[label], where


def test_panels_explain_themselves_and_do_not_overlap() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] == "row" or panel["description"].endswith((".", ")."))
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_alerts_say_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}


def test_prometheus_reads_every_query_and_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH (on Debian: apt-get install prometheus)")
    panels = [
        {"record": "panel:query", "labels": {"number": str(number)}, "expr": _without_variables(query)}
        for number, (_, query) in enumerate(queries())
    ]
    spec = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]
    spec["groups"].append({"name": "panels", "rules": panels})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    shutil.copyfile(ROOT / "tests/deploy/alerts_cases.yaml", tmp_path / "cases.yaml")
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "cases.yaml"]):
        done = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def _without_variables(query: str) -> str:
    return query.replace("$__rate_interval", "1m").replace("$namespace", ".*")
