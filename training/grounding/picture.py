"""One picture of the rows of the SID tokens before and after grounding, and after fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.grounding.diagnostics import CodeUse, cosines, spectrum, without_mean
from training.grounding.vocabulary import Vocabulary

_NUM_SHOWN = 50
_MAP_ROWS = 512


def draw_states(
    path: Path,
    states: dict[str, np.ndarray],
    matrix: torch.Tensor,
    vocabulary: Vocabulary,
    uses: Sequence[CodeUse],
) -> None:
    """`draw` for whole states: rows of codes that no item carries are left out. Shapes: (R, D), (V, D)."""
    is_used = np.concatenate([use.is_used for use in uses])
    text = matrix.detach().cpu().float().numpy()[vocabulary.text_token_ids]
    draw(path, {name: rows[is_used] for name, rows in states.items()}, text)


def draw(path: Path, states: dict[str, np.ndarray], text: np.ndarray, *, seed: int = 0) -> None:
    """Write a PNG: spectrum and norms of all states, and two cosine maps of each.

    Args:
        path: file to write.
        states: name of a moment ("before", "after") -> rows of used SID tokens in code order.
            Shape of each: (R, D).
        text: rows of the text tokens. Shape: (V_text, D).
        seed: which text rows stand beside the SID rows.
    """
    figure = Figure(figsize=(4.2 * (1 + len(states)), 8.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(2, 1 + len(states))
    _spectra(axes[0, 0], states, text)
    _norms(axes[1, 0], states, text)
    generator = np.random.default_rng(seed)
    some_text = text[generator.choice(len(text), min(_NUM_SHOWN, len(text)), replace=False)]
    for column, (name, rows) in enumerate(states.items(), start=1):
        some_rows = rows[generator.choice(len(rows), min(_NUM_SHOWN, len(rows)), replace=False)]
        _map(axes[0, column], np.concatenate([some_text, some_rows]), f"{name}: 50 text rows, 50 SID rows")
        thinned = rows[:: max(1, -(-len(rows) // _MAP_ROWS))]
        _map(axes[1, column], without_mean(thinned), f"{name}: SID rows in code order, centred")
    figure.savefig(path, dpi=80)


def _spectra(axes: Any, states: dict[str, np.ndarray], text: np.ndarray) -> None:
    for name, rows in {**states, "text": text}.items():
        values = spectrum(without_mean(rows))
        axes.semilogy(
            np.arange(1, len(values) + 1), np.maximum(values / np.sqrt(len(rows)), 1e-6), label=name
        )
    axes.set_title("singular values of centred rows / sqrt(rows)", fontsize=9)
    axes.legend(fontsize=8)


def _norms(axes: Any, states: dict[str, np.ndarray], text: np.ndarray) -> None:
    for name, rows in {**states, "text": text}.items():
        axes.hist(np.linalg.norm(rows, axis=1), bins=40, density=True, histtype="step", label=name)
    axes.set_title("norms of rows", fontsize=9)
    axes.legend(fontsize=8)


def _map(axes: Any, rows: np.ndarray, title: str) -> None:
    axes.imshow(cosines(rows), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
