"""vLLM's own C norm kernels, also on a CPU.

vLLM 0.32.0 compiles them for CPUs but gives them to GPUs only; on a CPU every norm of a prompt pass
runs six torch operations (23 us instead of 5 for 192 tokens of width 256). vLLM picks the
implementation of its operations from a list of names, `ir_op_priority`, so this module adds a name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PROVIDER = "gtirec_cpu"
PRIORITY = {"rms_norm": [PROVIDER], "fused_add_rms_norm": [PROVIDER]}  # vLLM appends its own after it


def register() -> None:
    """Tell vLLM of the kernels. In every process of vLLM; safe to call more than once."""
    from vllm import ir

    if PROVIDER in ir.ops.rms_norm.impls:
        return
    norm, add_norm = ir.ops.rms_norm, ir.ops.fused_add_rms_norm
    norm.register_impl(PROVIDER, supports_args=_fits)(rms_norm)
    add_norm.register_impl(PROVIDER, supports_args=_fits_in_place, inplace=True)(fused_add_rms_norm)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """See `vllm.ir.ops.rms_norm`. Shape: (..., D)."""
    x = x.contiguous()  # the kernel takes that for granted
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """See `vllm.ir.ops.fused_add_rms_norm`; writes into both. Shapes: (..., D)."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def _fits(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return x.device.type == "cpu" and variance_size is None and weight is not None and weight.dtype == x.dtype


def _fits_in_place(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: Any = None
) -> bool:
    return _fits(x, weight, epsilon, variance_size) and x.is_contiguous() and x_residual.is_contiguous()
