"""A model shared out over the ranks by torch's FSDP2: each keeps a part of every tensor that training holds.

In float32 training holds 16 bytes per parameter: weight, gradient and Adam's two moments. Shared out, a rank
keeps its part of all four, and gathers one block's weights at a time to compute with them. Only for
validation are all weights gathered at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from training.learning.ranks import Ranks


def shard(objective: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Share an objective's parameters out over all ranks, in place; every rank holds the same ones before.

    Its gradients are then sums over the ranks, as those of `Ranks.add_up`.

    Args:
        objective: what the loop calls.
        blocks: its large parts; each is gathered when it is called, and so must be called as a module.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (Ranks.current().count,))
    for part in (*blocks, objective):
        shared = fully_shard(part, mesh=mesh)
        shared.set_gradient_divide_factor(1.0)
        shared.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction


def is_shared(tensor: torch.Tensor) -> bool:
    """True for a tensor of which every rank holds a part."""
    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor on every rank; all ranks call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_shared(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of another one, and shared out if that is; all ranks call it together."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements)


@contextlib.contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Inside the context every parameter below a module is a plain tensor, whole, on every rank."""
    if not any(is_shared(parameter) for parameter in module.parameters()):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not module, recurse=False)


@torch.no_grad()
def copy_whole(source: nn.Module, target: nn.Module) -> None:
    """Copy the parameters of a module that is shared out into a plain one like it, on every rank."""
    targets = dict(target.named_parameters())
    for name, parameter in source.named_parameters():
        targets[name].copy_(whole(parameter))
