"""A small feed-forward network as plain arrays: it maps an item's vector into the space of the codebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, eq=False)
class Mlp:
    """Linear layers with a ReLU between two of them, none after the last.

    Attributes:
        layers: weights and biases of every layer, first layer first. Shapes: (D_out, D_in), float32;
            (D_out,), float32. No layers at all: vectors are left as they are.
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Map vectors. Shape: (N, D_in) -> (N, D_out), float32."""
        vectors = np.asarray(vectors, dtype=np.float32)
        if not self.layers:
            return vectors
        parts = [self._map(vectors[at : at + _ROWS_AT_ONCE]) for at in range(0, len(vectors), _ROWS_AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.layers[-1][1])), dtype=np.float32)

    def _map(self, vectors: np.ndarray) -> np.ndarray:
        for number, (weight, bias) in enumerate(self.layers):
            vectors = vectors @ weight.T + bias
            if number < len(self.layers) - 1:
                vectors = np.maximum(vectors, 0)
        return vectors

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Named arrays to save: `<name>_0_weight`, `<name>_0_bias`, ..."""
        named = {}
        for number, (weight, bias) in enumerate(self.layers):
            named[f"{name}_{number}_weight"] = np.ascontiguousarray(weight)
            named[f"{name}_{number}_bias"] = np.ascontiguousarray(bias)
        return named

    @classmethod
    def of_arrays(cls, name: str, arrays: Mapping[str, np.ndarray]) -> Mlp:
        """What `arrays` wrote.

        Raises:
            KeyError, ValueError: a bias is missing, or shapes do not fit each other.
        """
        layers = []
        while (weight := arrays.get(f"{name}_{len(layers)}_weight")) is not None:
            bias = arrays[f"{name}_{len(layers)}_bias"]
            fits = weight.ndim == 2 and bias.shape == weight.shape[:1]
            if not fits or (layers and layers[-1][0].shape[0] != weight.shape[1]):
                raise ValueError(f"layer {len(layers)} of the network {name!r} does not fit the others")
            layers.append((weight, bias))
        return cls(tuple(layers))
