"""RQ-VAE: an encoder, residual codebooks and a decoder, learned together.

Source: Lee et al. (2022), "Autoregressive image generation using residual quantization", as TIGER
(arXiv:2305.05065) and LC-Rec (arXiv:2311.09049) use it for items; the diversity term is LETTER's
(arXiv:2405.07314), equation 4.

Shapes: b vectors of a batch, D their width, Z width of the codebooks' space, L levels, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.semantic_ids.codebooks import Codebooks
from service.semantic_ids.mlp import Mlp
from training.semantic_ids.config import RqVaeConfig
from training.semantic_ids.sinkhorn import balanced_codes


@dataclass(frozen=True)
class Losses:
    """Sums over a batch.

    Attributes:
        reconstruction: squared distance between vector and decoded codes.
        commitment: squared distance between residuals and their centroids, once for the centroids
            and `config.commitment` times for the encoder.
        diversity: LETTER's term.
    """

    reconstruction: Tensor
    commitment: Tensor
    diversity: Tensor


class RqVae(nn.Module):
    """The network; calling it gives the training loss.

    Args:
        dim: D.
        num_levels: L.
        codebook_size: K.
        config: everything else.
    """

    def __init__(self, dim: int, num_levels: int, codebook_size: int, config: RqVaeConfig) -> None:
        super().__init__()
        self._config = config
        widths = (dim, *config.hidden_sizes, config.latent_dim)
        self.encoder = _network(widths, config.dropout)
        self.decoder = _network(widths[::-1], config.dropout)
        shape = (codebook_size, config.latent_dim)
        self.books = nn.ParameterList([nn.Parameter(torch.randn(shape) * 0.1) for _ in range(num_levels)])
        # Which codes of a level belong together; for the diversity term. Refreshed now and then.
        self.groups: Sequence[Tensor] = ()

    def forward(self, vectors: Tensor) -> Tensor:
        """Sum over the batch of reconstruction, commitment and diversity. Shape: (b, D) -> scalar."""
        losses = self.losses(vectors)
        return losses.reconstruction + losses.commitment + self._config.diversity * losses.diversity

    def losses(self, vectors: Tensor) -> Losses:
        """The terms of the loss; gradients reach encoder and centroids as the method wants them."""
        latents = self.encoder(vectors)
        residual, quantized = latents, torch.zeros_like(latents)
        commitment = diversity = latents.new_zeros(())
        for level, book in enumerate(self.books):
            codes = self._codes(level, residual)
            centroids = book[codes]
            # One value, two gradients: the centroid moves fully, the encoder `commitment` as much.
            towards = (residual.detach() - centroids).square().sum()
            committed = (residual - centroids.detach()).square().sum()
            commitment = commitment + towards + self._config.commitment * committed
            if self._config.diversity and self.groups:
                diversity = diversity + self._diversity(level, codes, residual)
            quantized = quantized + centroids.detach()
            residual = residual - centroids.detach()
        straight_through = latents + (quantized - latents).detach()
        reconstruction = (self.decoder(straight_through) - vectors).square().sum()
        return Losses(reconstruction, commitment, diversity)

    @torch.no_grad()
    def _codes(self, level: int, residual: Tensor) -> Tensor:
        """Code of every residual: the nearest, or on the last level spread evenly. Shape: (b,), int64."""
        distances = torch.cdist(residual, self.books[level]).square()
        epsilon = self._config.sinkhorn_epsilon
        if self.training and epsilon and level == len(self.books) - 1:
            rounds = self._config.sinkhorn_iterations
            return balanced_codes(distances, epsilon=epsilon, num_iterations=rounds)
        return distances.argmin(dim=1)

    def _diversity(self, level: int, codes: Tensor, residual: Tensor) -> Tensor:
        """Every chosen centroid is drawn to another of its group and pushed from all the rest."""
        book, groups = self.books[level], self.groups[level]
        same = groups[codes][:, None] == groups[None]  # (b, K)
        is_self = F.one_hot(codes, len(book)).bool()
        allowed = (same & ~is_self).float()
        alone = allowed.sum(dim=1) == 0
        allowed[alone] = is_self[alone].float()
        partner = torch.multinomial(allowed, 1)[:, 0]
        likeness = (book[codes] @ book.T).masked_fill(is_self & ~alone[:, None], float("-inf"))
        return F.cross_entropy(likeness, partner, reduction="none")[~alone].sum()

    @torch.no_grad()
    def residuals(self, vectors: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per level what is left to explain, shape (N, Z), and its nearest codes, shape (N,)."""
        residual, found = self.encoder(vectors), []
        for book in self.books:
            codes = torch.cdist(residual, book).argmin(dim=1)
            found.append((residual, codes))
            residual = residual - book[codes]
        return found

    def codebooks(self) -> Codebooks:
        """What serving needs: the encoder and the centroids."""
        levels = tuple(book.detach().cpu().numpy().copy() for book in self.books)
        return Codebooks(levels, encoder=_arrays(self.encoder))

    def decoder_arrays(self) -> Mlp:
        """The way back to the vectors, for the quality report."""
        return _arrays(self.decoder)


def _network(widths: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (wide, narrow) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(wide, narrow))
        if number < len(widths) - 2:
            layers += [nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _arrays(network: nn.Sequential) -> Mlp:
    def array(tensor: Tensor) -> np.ndarray:
        return tensor.detach().cpu().numpy().astype(np.float32).copy()

    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return Mlp(tuple((array(layer.weight), array(layer.bias)) for layer in linear))
