"""Make the virtual environment from the lock files: `make install`, or `python requirements/install.py`.

Run it with the Python that the environment shall have (3.11 or 3.12); it needs nothing but that Python.
The order is what makes the result right: torch alone, in its CPU build; then the lock file of this
machine with `--no-deps`, so that no package can bring another torch; then the project itself, because
vLLM finds our plugin by the entry point of an installed package. When nothing has changed since the
last time, it returns at once.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path

from machine import LOCKS, Machine, choose_lock, why_no_vllm

ROOT = Path(__file__).resolve().parents[1]
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP = "gti-rec.installed"
# What may not lie beside torch+cpu: their builds break the import of transformers' models.
BREAKS_TORCH = ("torchvision", "torchaudio", "torchcodec")

# Errors only. Not compiled: Python does that on first import for the tenth of the files that we import,
# which halves the installation (75 s -> 39 s on two cores).
INSTALL = ("install", "-qq", "--no-deps", "--no-compile")


class InstallError(Exception):
    """The environment cannot be made; the message says what to do."""


class Environment:
    """A virtual environment under construction.

    Args:
        path: where it is, or will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / "bin" / "python"

    def create(self) -> None:
        """Make it afresh with the running Python."""
        if self.path.exists():
            if not (self.path / "pyvenv.cfg").is_file():
                raise InstallError(f"{self.path} exists and is no virtual environment: move it away")
            shutil.rmtree(self.path)
        try:
            venv.create(self.path, with_pip=True)
        except (subprocess.CalledProcessError, OSError) as error:
            raise InstallError(
                f"cannot make the virtual environment {self.path} ({error}); on Debian or Ubuntu the package "
                f"python{sys.version_info.major}.{sys.version_info.minor}-venv is needed"
            ) from error

    def fits(self) -> bool:
        """It exists and has the version of the running Python."""
        if not self.python.exists():
            return False
        code = "import platform; print(platform.python_version(), end='')"
        found = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False)
        return found.returncode == 0 and found.stdout == platform.python_version()

    def pip(self, *arguments: str | Path, may_fail: bool = False) -> bool:
        """Run pip; True if it succeeded."""
        command = [self.python, "-m", "pip", "--disable-pip-version-check", *arguments]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=may_fail)
        if done.returncode != 0 and not may_fail:
            raise InstallError(f"`pip {' '.join(map(str, arguments))}` failed; its message is above")
        return done.returncode == 0

    def answers(self, code: str) -> str:
        """What a line of Python prints in it; empty if it fails."""
        found = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else ""


def torch_version() -> str:
    """The pin of requirements/torch.txt, e.g. "2.13.0"."""
    lines = (LOCKS / "torch.txt").read_text().splitlines()
    return next(line.removeprefix("torch==").strip() for line in lines if line.startswith("torch=="))


def installed_torch(environment: Environment) -> tuple[str, str]:
    """Version and CUDA version of the torch that lies there, without importing it; ("", "") if none."""
    found = environment.answers(
        "import importlib.util, pathlib, runpy; "
        "package = pathlib.Path(importlib.util.find_spec('torch').origin); "
        "facts = runpy.run_path(str(package.with_name('version.py'))); "
        "print(facts['__version__'], facts['cuda'])"
    ).split()
    return (found[0], found[1]) if len(found) == 2 else ("", "")


def install_torch(environment: Environment, machine: Machine) -> None:
    """Torch by itself, in its CPU build: from what pip is configured with, else from PyTorch's index.

    On Linux the CPU build is asked for by its local version, `+cpu`: PyPI does not have it, so a
    machine with PyPI alone learns so without downloading the CUDA build first.
    """
    version = torch_version()
    if installed_torch(environment) in ((version, "None"), (f"{version}+cpu", "None")):
        return
    if machine.system != "Linux":
        environment.pip(*INSTALL, f"torch=={version}")
        return
    attempts: tuple[tuple[str, ...], ...] = (
        (f"torch=={version}+cpu",),
        (f"torch=={version}+cpu", "--index-url", PYTORCH_CPU_INDEX),
        # A mirror may carry the CPU build without its label.
        (f"torch=={version}", "--only-binary", ":all:"),
    )
    for attempt in attempts:
        if environment.pip(*INSTALL, "--force-reinstall", *attempt, may_fail=True):
            if installed_torch(environment)[1] == "None":
                return
            environment.pip("uninstall", "-qq", "--yes", "torch")
    raise InstallError(
        f"no CPU build of torch {version} for Python {platform.python_version()} on {machine.arch}: neither "
        f"pip's configured index and find-links nor {PYTORCH_CPU_INDEX} has it or can be reached; "
        "name a folder with the wheel in PIP_FIND_LINKS, or another Python: make install PYTHON=..."
    )


def fingerprint(locks: list[Path]) -> str:
    """Hash of everything the environment is made from. Two equal ones need no work."""
    digest = hashlib.sha256(f"{ROOT}\n{sys.version}\n".encode())
    for path in [*sorted(LOCKS.glob("*.py")), LOCKS / "torch.txt", ROOT / "pyproject.toml", *locks]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def install(path: Path, *, with_dev: bool, machine: Machine, torch_only: bool = False) -> None:
    """Bring the environment at `path` to the state of the lock files.

    Args:
        path: the virtual environment; made if missing.
        with_dev: with the tools of `make test`.
        machine: what it must fit.
        torch_only: leave vLLM out even where it fits.

    Raises:
        InstallError: with a sentence for the person at the terminal.
    """
    environment = Environment(path)
    runtime = LOCKS / "torch-only.txt" if torch_only else choose_lock(machine)
    locks = [runtime] + ([LOCKS / "dev.txt"] if with_dev else [])
    stamp = path / STAMP
    done = stamp.read_text().split() if stamp.is_file() else []
    wanted = fingerprint(locks)
    if wanted in done and environment.fits():
        return
    started = time.monotonic()
    stamp.unlink(missing_ok=True)
    steps: list[tuple[str, Callable[[], object]]] = [
        (f"torch {torch_version()}", lambda: install_torch(environment, machine)),
        *[(f"requirements/{lock.name}", partial(_install_lock, environment, lock)) for lock in locks],
        ("gti-rec itself", lambda: _install_project(environment)),
    ]
    if not environment.fits():
        what = f"environment {path.name} with Python {platform.python_version()}"
        steps.insert(0, (what, environment.create))
    for number, (what, run) in enumerate(steps, 1):
        print(f"install {number}/{len(steps)}: {what}", flush=True)
        run()
    # The dev environment contains the plain one: both are up to date now.
    stamp.write_text("\n".join({fingerprint(locks[:1]), wanted}) + "\n")
    print(f"install: done in {time.monotonic() - started:.0f} s", flush=True)


def _install_lock(environment: Environment, lock: Path) -> None:
    environment.pip(*INSTALL, "--requirement", lock)


def _install_project(environment: Environment) -> None:
    names = "', '".join(BREAKS_TORCH)
    found = environment.answers(
        f"import importlib.util as u; print(*[n for n in ('{names}') if u.find_spec(n)])"
    )
    if found:
        environment.pip("uninstall", "-qq", "--yes", *found.split())
    environment.pip(*INSTALL, "--no-build-isolation", "--editable", ".")


def main() -> int:
    """The command line; exit status 1 with one sentence if it cannot be done."""
    parser = argparse.ArgumentParser(description="Make the virtual environment from the lock files.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where to make it")
    parser.add_argument("--dev", action="store_true", help="with the tools of `make test`")
    parser.add_argument("--torch-only", action="store_true", help="without vLLM, even where it fits")
    arguments = parser.parse_args()
    machine = Machine.this()
    try:
        if not (3, 11) <= sys.version_info[:2] < (3, 13):
            raise InstallError(f"Python 3.11 or 3.12 is needed, this is {platform.python_version()}")
        path, torch_only = arguments.venv.resolve(), arguments.torch_only
        install(path, with_dev=arguments.dev, machine=machine, torch_only=torch_only)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    if reason := why_no_vllm(machine):
        print(f"install: {reason}; the torch engine is used by itself.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
