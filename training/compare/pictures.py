"""Pictures of a grid: convergence per base model, and the rows of the SID tokens, arms side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.compare.grid import Cell
from training.grounding.diagnostics import cosines, without_mean
from training.grounding.states import ROWS, load_states
from training.pipeline import read_json

_MAP_ROWS = 96


def draw_all(folder: Path, cells: Sequence[Cell], results: Mapping[str, Any]) -> None:
    """Write convergence.png, and rows_<base>.png and maps_<base>.png for every base model."""
    done = [cell for cell in cells if cell.chosen]
    if not done:
        return
    draw_convergence(folder / "convergence.png", results["convergence"])
    for base in dict.fromkeys(cell.base_model for cell in done):
        here = [cell for cell in done if cell.base_model == base]
        draw_rows(folder / f"rows_{base}.png", here)
        draw_maps(folder / f"maps_{base}.png", here)


def draw_convergence(path: Path, curves: Sequence[Mapping[str, Any]]) -> None:
    """Validation NDCG@10 against fine-tuning steps, mean over seeds, one panel a base model."""
    bases = list(dict.fromkeys(curve["base_model"] for curve in curves))
    figure = _figure(5.2 * len(bases), 4.2)
    panels: Any = figure.subplots(1, len(bases), squeeze=False)[0]
    for axes, base in zip(panels, bases, strict=True):
        for number, curve in enumerate(c for c in curves if c["base_model"] == base):
            style = ("-", "--", ":")[number // 10 % 3]
            axes.plot(
                curve["steps"], curve["valid_NDCG@10"], style, marker=".", linewidth=1, label=curve["arm"]
            )
        axes.set_title(base, fontsize=9)
        axes.set_xlabel("fine-tuning steps")
        axes.set_ylabel("validation NDCG@10")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=80)


def draw_rows(path: Path, cells: Sequence[Cell]) -> None:
    """Effective rank, RSA and norm of the new rows, before, after grounding and after fine-tuning."""
    measures = {
        "effective rank of the centred rows": "centred_effective_rank",
        "RSA with the codebooks (Spearman, centred)": "centred_rsa_spearman",
        "mean norm": "norm_mean",
    }
    moments = [_moments(cell) for cell in cells]
    figure = _figure(max(4.5, 1.2 + 0.8 * len(cells)), 8.0)
    panels: Any = figure.subplots(len(measures), 1)
    for axes, (title, measure) in zip(panels, measures.items(), strict=True):
        for place, name in enumerate(("before", "grounded", "fine-tuned")):
            heights = [(arm[name]["all"].get(measure) or 0.0) for arm in moments]
            axes.bar(np.arange(len(cells)) + 0.27 * (place - 1), heights, 0.25, label=name)
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(cells)), [cell.arm for cell in cells], fontsize=7, rotation=20)
    panels[0].legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=80)


def draw_maps(path: Path, cells: Sequence[Cell]) -> None:
    """Centred cosines of the first level's rows in code order: after grounding, after fine-tuning."""
    figure = _figure(2.0 * len(cells), 4.6)
    panels: Any = figure.subplots(2, len(cells), squeeze=False)
    for column, cell in enumerate(cells):
        directory = cell.chosen[0].directory
        states = {
            "grounded": list(load_states(directory / "grounding" / ROWS).values())[-1],
            "fine-tuned": load_states(directory / "finetuning" / ROWS)["after SFT"],
        }
        size = read_json(directory / "semantic_ids" / "report.json")["levels"][0]["codebook_size"]
        for row, (name, values) in enumerate(states.items()):
            axes = panels[row, column]
            axes.imshow(
                cosines(without_mean(values[: min(size, _MAP_ROWS)])),
                vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest",
            )  # fmt: skip
            axes.set_title(f"{cell.arm}\n{name}", fontsize=7)
            axes.set_xticks([])
            axes.set_yticks([])
    figure.savefig(path, dpi=60)


def _moments(cell: Cell) -> dict[str, Any]:
    """Numbers of the new input rows at three moments, of the first seed."""
    directory = cell.chosen[0].directory
    grounding = read_json(directory / "grounding" / "diagnostics.json")
    after = read_json(directory / "finetuning" / "diagnostics.json")["after SFT"]["input"]
    last = [name for name in ("before", "stage A", "stage B", "shuffled") if name in grounding][-1]
    return {"before": grounding["before"]["input"], "grounded": grounding[last]["input"], "fine-tuned": after}


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
