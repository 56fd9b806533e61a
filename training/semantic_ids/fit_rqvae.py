"""Train an RQ-VAE on the items' vectors: seeded by k-means, dead codes revived, resumable.

Shapes: N items, D width of the vectors, Z width of the codebooks' space, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.semantic_ids.codebooks import Codebooks
from service.semantic_ids.mlp import Mlp
from training.learning.batches import Stream, derive_seed
from training.learning.loop import Loop, LoopSettings, LossLog
from training.learning.ranks import Ranks
from training.learning.schedule import CosineSchedule
from training.semantic_ids.config import RqVaeConfig
from training.semantic_ids.kmeans import kmeans
from training.semantic_ids.rqvae import RqVae

_PROBES = 65_536  # vectors on which dead codes are looked for, at most


@dataclass(frozen=True)
class FittedRqVae:
    """What training leaves.

    Attributes:
        codebooks: encoder and centroids; what serving needs.
        decoder: codebooks' space -> vectors; for the quality report.
        notes: losses of the run, and how many codes were revived.
    """

    codebooks: Codebooks
    decoder: Mlp
    notes: dict[str, Any]


def fit_rqvae(
    vectors: np.ndarray,
    num_levels: int,
    codebook_size: int,
    config: RqVaeConfig,
    *,
    seed: int,
    checkpoint: Path,
) -> FittedRqVae:
    """Fit encoder, codebooks and decoder; goes on from `checkpoint` where a killed run left one.

    Args:
        vectors: Shape: (N, D), float32.
        num_levels: L.
        codebook_size: K.
        config: how.
        seed: of weights, order and dropout.
        checkpoint: file of the training state.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = torch.from_numpy(np.array(vectors, dtype=np.float32)).to(device)
    torch.manual_seed(derive_seed(seed, "rqvae", "weights"))
    model = RqVae(data.shape[1], num_levels, codebook_size, config).to(device)
    if config.kmeans_init and not checkpoint.exists():
        seed_codebooks(model, data, seed=seed)
    settings = LoopSettings(
        schedule=CosineSchedule.of(config, config.steps),
        seed=derive_seed(seed, "rqvae", "loop"),
        weight_decay=config.weight_decay,
        precision="fp32",
        title="RQ-VAE",
    )
    keeper = CodeKeeper(model, data, config, seed=seed)
    loop = Loop(
        model.train(),
        dict(model.named_parameters()),
        VectorBatches(data, config.batch_size, seed=derive_seed(seed, "rqvae", "order")),
        settings,
        checkpoint=checkpoint,
        watcher=keeper,
        ranks=Ranks(),  # a small model on one machine: rank 0 by itself
    )
    keeper.find_groups(is_resumed=loop.step > 0)
    loop.run()
    model.eval()
    notes = {"losses": keeper.state["losses"], "revived_codes": keeper.state["revived"]}
    return FittedRqVae(model.codebooks(), model.decoder_arrays(), notes)


@torch.no_grad()
def seed_codebooks(model: RqVae, data: Tensor, *, seed: int) -> None:
    """Put the centroids of residual k-means, in the untrained encoder's space, into the codebooks."""
    residual = model.eval().encoder(data)
    for level, book in enumerate(model.books):
        found = kmeans(residual, len(book), seed=derive_seed(seed, "rqvae", "kmeans", level))
        book[: len(found.centroids)] = found.centroids
        residual = residual - found.centroids[found.codes]


@dataclass(frozen=True)
class VectorBatch:
    """Vectors computed at once. Shape: (b, D), float32."""

    vectors: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the network is called with."""
        return (self.vectors,)

    @property
    def num_labels(self) -> int:
        """Terms in the loss, b."""
        return len(self.vectors)

    def to(self, device: torch.device) -> VectorBatch:
        """The same on another device."""
        return VectorBatch(self.vectors.to(device))


class VectorBatches:
    """A shuffled batch of the vectors for every step, as a function of (seed, step)."""

    def __init__(self, data: Tensor, batch_size: int, *, seed: int) -> None:
        self._data = data
        self._count = min(batch_size, len(data))
        self._stream = Stream(len(data), seed)

    def at(self, step: int) -> list[VectorBatch]:
        """The batch of one step, in one part."""
        rows = torch.from_numpy(self._stream.take(step * self._count, self._count))
        return [VectorBatch(self._data[rows.to(self._data.device)])]


class CodeKeeper(LossLog):
    """Notes the losses, revives dead codes, and keeps the groups of the diversity term fresh.

    What it does after a step depends on the weights and the step alone, so that a resumed run does
    the same.
    """

    def __init__(self, model: RqVae, data: Tensor, config: RqVaeConfig, *, seed: int) -> None:
        super().__init__(config.steps)
        self.state |= {"revived": 0, "groups": []}
        self._model = model
        self._config = config
        self._seed = seed
        order = np.random.default_rng(derive_seed(seed, "rqvae", "probes")).permutation(len(data))
        self._probes = data[torch.from_numpy(order[:_PROBES]).to(data.device)]

    def after_step(self, loop: Loop, step: int, loss: float) -> bool:
        """Look after the codes; never stops."""
        super().after_step(loop, step, loss)
        config = self._config
        every = config.revive_every
        if every and step % every == 0 and step <= config.revive_until * config.steps:
            self._model.eval()
            self.state["revived"] += self._revive(step)
            self._model.train()
        if step % config.regroup_every == 0:
            self._regroup(step)
        return False

    def find_groups(self, *, is_resumed: bool) -> None:
        """Before the run: cluster the centroids, or take the groups of the run that is resumed."""
        if not is_resumed:
            self._regroup(0)
            return
        device = self._probes.device
        self._model.groups = [torch.tensor(groups, device=device) for groups in self.state["groups"]]

    @torch.no_grad()
    def _revive(self, step: int) -> int:
        """Move every code that no probe uses onto a random residual of its level."""
        revived = 0
        for level, book in enumerate(self._model.books):
            residual, codes = self._model.residuals(self._probes)[level]
            counts = torch.bincount(codes, minlength=len(book))
            dead = torch.nonzero(counts == 0).flatten()
            if not len(dead):
                continue
            generator = np.random.default_rng(derive_seed(self._seed, "rqvae", "revive", step, level))
            chosen = generator.choice(len(residual), size=len(dead), replace=len(dead) > len(residual))
            book[dead] = residual[torch.from_numpy(chosen).to(residual.device)]
            revived += len(dead)
        return revived

    @torch.no_grad()
    def _regroup(self, step: int) -> None:
        """Cluster the centroids of every level anew, for the diversity term."""
        if not self._config.diversity:
            return
        seed = derive_seed(self._seed, "rqvae", "groups", step)
        found = [
            kmeans(book.detach(), self._config.diversity_groups, seed=seed) for book in self._model.books
        ]
        self._model.groups = [cells.codes for cells in found]
        self.state["groups"] = [groups.tolist() for groups in self._model.groups]
