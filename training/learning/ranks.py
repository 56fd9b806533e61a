"""Several processes that train one model together, and what they tell each other.

    torchrun --nproc-per-node 2 -m training all --config training/recipes/demo.toml

Every process ("rank") holds the whole model, takes its share of the rows of every micro-batch, and the
gradients are added up before the step: the curve is that of one process but for the order of sums (and,
with dropout, for other random masks). Rank 0 alone writes files, so a run may be killed with two ranks
and resumed with one or eight. torchrun starts the processes, and starts them again when one dies
(`--max-restarts`); they resume from rank 0's checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from training.errors import TrainingError

# Rank 0 also does what only one process can do (items, k-means, evaluation) while the others wait.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        number: 0 for the one that writes files, up to `count` - 1.
        count: how many there are; 1 without torchrun.
    """

    number: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """What `together` has set up, or one process by itself."""
        if not distributed.is_initialized():
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def agree(self, value: Any) -> Any:
        """Rank 0's value on every rank. Anything that JSON can say; the others' own value is ignored."""
        if self.count == 1:
            return value
        text = json.dumps(value).encode() if self.number == 0 else b""
        length = torch.tensor([len(text)])
        distributed.broadcast(length, src=0)
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.number == 0:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        distributed.broadcast(content, src=0)
        return json.loads(content.numpy().tobytes())

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite every tensor with rank 0's, in place. All ranks give the same shapes in one order."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    @property
    def rows(self) -> slice:
        """This rank's share of the rows of a micro-batch; every row belongs to one rank."""
        return slice(self.number, None, self.count)

    @property
    def seed_names(self) -> tuple[int, ...]:
        """What makes this rank's random numbers differ from the others'; nothing for rank 0."""
        return (self.number,) if self.number else ()

    @torch.no_grad()
    def add_up(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Replace gradients by their sums over all ranks, and return the sum of `loss`.

        Where a parameter is shared out (training/learning/sharding.py) its gradient is that sum already.
        A parameter that had no gradient anywhere keeps none, so that the optimizer leaves it alone.
        """
        if self.count == 1:
            return loss
        parameters = [p for p in parameters if not isinstance(p, DTensor)]
        head = torch.tensor([loss, *(float(p.grad is not None) for p in parameters)], dtype=torch.float64)
        distributed.all_reduce(head)
        used = [p for p, num_ranks in zip(parameters, head[1:].tolist(), strict=True) if num_ranks]
        if not used:
            return float(head[0])
        device = used[0].device
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in used]
        ).to(device)
        distributed.all_reduce(flat)
        for parameter, total in zip(used, flat.split([p.numel() for p in used]), strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype)
        return float(head[0])

    @torch.no_grad()
    def check_same(self, parameters: Sequence[nn.Parameter]) -> None:
        """Raises:
        TrainingError: the ranks hold different numbers: they ran different code or recipes.
        """
        parameters = [p for p in parameters if not isinstance(p, DTensor)]
        if self.count == 1 or not parameters:
            return
        sums = torch.stack([p.double().sum().cpu() for p in parameters])
        first = sums.clone()
        distributed.broadcast(first, src=0)
        if not torch.equal(first, sums):
            raise TrainingError(
                f"rank {self.number} ended with other weights than rank 0; start every rank from the same "
                "code, recipe and files, on machines of one kind"
            )


@contextlib.contextmanager
def together() -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun there is just this one.

    Collectives of CPU tensors go over gloo, those of GPU tensors over NCCL.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    torchrun_store, rank, count = next(distributed.rendezvous("env://", timeout=PATIENCE))
    store = fresh_store(torchrun_store, rank, count)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        yield Ranks.current()
    finally:
        distributed.destroy_process_group()


def fresh_store(store: distributed.Store, rank: int, count: int) -> distributed.Store:
    """A corner of torchrun's store to which no earlier attempt has written.

    torch 2.13 gives all attempts one store, in which gloo may find the address of a rank that died and
    fail (seen in half of the restarts), and no number of the attempt that all machines share. So rank 0
    makes a name up, and hands it to whoever asks with a word of its own.
    """
    word = secrets.token_hex(8)
    if rank > 0:
        store.set(f"gtirec/ask/{rank}", word)
        corner = distributed.PrefixStore(store.get(f"gtirec/answer/{word}").decode(), store)
        corner.set(f"gtirec/seen/{rank}", "")
        return corner
    corner = distributed.PrefixStore(word, store)
    waiting = set(range(1, count))
    while waiting:  # torchrun stops every rank when one dies meanwhile
        for other in sorted(waiting):
            if store.check([f"gtirec/ask/{other}"]):  # perhaps of an earlier attempt: then asked again
                store.set(f"gtirec/answer/{store.get(f'gtirec/ask/{other}').decode()}", word)
        waiting = {other for other in waiting if not corner.check([f"gtirec/seen/{other}"])}
        time.sleep(0.02)
    return corner
