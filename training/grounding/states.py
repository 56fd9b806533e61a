"""The rows of the SID tokens at several moments, in one file, for diagnostics and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROWS = "rows.safetensors"


def save_states(path: Path, states: dict[str, dict[str, torch.Tensor]]) -> None:
    """Write the new rows of every moment; tensors are called `moment/matrix`, e.g. `stage A/input`."""
    tensors = {
        f"{moment}/{name}": values.cpu().contiguous()
        for moment, rows in states.items()
        for name, values in rows.items()
    }
    save_file(tensors, path, metadata={"moments": json.dumps(list(states))})


def load_states(path: Path, matrix: str = "input") -> dict[str, np.ndarray]:
    """The new rows of one matrix, moments in order. Shape of each: (R, D), float32."""
    with safe_open(path, framework="np") as file:
        moments = json.loads((file.metadata() or {})["moments"])
        return {moment: file.get_tensor(f"{moment}/{matrix}") for moment in moments}
