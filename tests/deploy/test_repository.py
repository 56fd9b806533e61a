"""The repository as others get it: nothing of our machines in it, nothing missing in what is built of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Put together so that this file does not find itself.
MACHINE_PATHS = "|".join(["/work" + "/", "/opt" + "/(wheels|pypi)", "/root" + "/", "/tmp" + "/(env|pk|lab)"])
REGISTRIES = "|".join(
    re.escape(host) for host in ("pypi" + ".org", "pythonhosted" + ".org", "registry.npmjs" + ".org")
)
DATA_SUFFIXES = {".html", ".css", ".js", ".svg", ".json", ".toml"}


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files under version control."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_registry(tracked: list[Path]) -> None:
    pattern = re.compile(rf"(?<![\w.])(?:{MACHINE_PATHS})|{REGISTRIES}")
    found = []
    for path in tracked:
        text = (ROOT / path).read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path}: {match.group()}" for match in pattern.finditer(text)]
    assert not found


def test_the_top_level_holds_what_it_should(tracked: list[Path]) -> None:
    top = {path.parts[0] for path in tracked if not path.parts[0].startswith(".")}
    assert top <= {
        *("Dockerfile", "LICENSE", "Makefile", "README.md", "docker-compose.yml", "pyproject.toml"),
        *("benchmarks", "k8s", "requirements", "service", "tests", "training"),
    }


def test_no_pickle_and_no_large_file(tracked: list[Path]) -> None:
    assert not [path for path in tracked if path.suffix in {".pkl", ".pickle", ".pt", ".bin", ".safetensors"}]
    assert not [path for path in tracked if (ROOT / path).stat().st_size > 2_000_000]


def test_ci_runs_the_tests_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec make test")


def test_every_make_target_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?m)^([a-z-]+):(.*)$", text)
    assert {"install", "demo", "test", "test-long"} <= {name for name, _ in targets}
    assert all("## " in rest for _, rest in targets)


def test_the_wheel_holds_every_page_recipe_and_table(tracked: list[Path], tmp_path: Path) -> None:
    tree, wheels = tmp_path / "tree", tmp_path / "wheels"
    for path in tracked:
        if path.parts[0] in {"service", "training", "pyproject.toml", "README.md", "LICENSE"}:
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, tree / path)
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", wheels, tree], check=True, cwd=tmp_path)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packaged = [path for path in tracked if path.parts[0] in {"service", "training"}]
    wanted = {str(path) for path in packaged if path.suffix in DATA_SUFFIXES | {".py"}}
    results = {name for name in wanted if name.startswith("training/results/")}
    assert not wanted - results - names
