"""The quality report as one picture, for the run directory and the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from service.bundle.manifest import LETTERS
from training.semantic_ids.collisions import bucket_sizes

_BLUE, _ORANGE, _GREY = "#3b6ea5", "#d07f2c", "#9aa0a6"


def draw(codes: np.ndarray, raw_codes: np.ndarray, report: dict[str, Any], path: Path) -> None:
    """Above: items per code of every level. Below: what prefixes share, what they explain, collisions.

    Args:
        codes: final SIDs. Shape: (N, L).
        raw_codes: before collision handling. Shape: (N, L0).
        report: of `quality.describe`.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    num_levels = codes.shape[1]
    columns = max(3, num_levels)
    figure = Figure(figsize=(3.2 * columns, 5.6), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    for level in range(num_levels):
        _draw_usage(axes[0, level], codes[:, level], report["levels"][level])
    _draw_agreement(axes[1, 0], report)
    _draw_explained(axes[1, 1], report)
    _draw_buckets(axes[1, 2], raw_codes, codes)
    for axis in [*axes[0, num_levels:], *axes[1, 3:]]:
        axis.set_axis_off()
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_usage(axis: Any, column: np.ndarray, level: dict[str, Any]) -> None:
    counts = np.sort(np.bincount(column, minlength=level["codebook_size"]))[::-1]
    axis.bar(np.arange(len(counts)), counts, width=1.0, color=_BLUE)
    axis.axhline(len(column) / len(counts), color=_GREY, linewidth=0.8, linestyle="--")
    axis.set_title(
        f"level {level['letter']}: {len(counts)} codes, {level['dead_codes']} dead, "
        f"{level['entropy_bits']:.2f} bits",
        fontsize=8,
    )
    axis.set_xlabel("codes, most used first", fontsize=8)
    axis.set_ylabel("items", fontsize=8)


def _draw_agreement(axis: Any, report: dict[str, Any]) -> None:
    names = [_prefix_name(level) for level in range(report["num_levels"])]
    for key, label, colour in (
        ("neighbours_share_prefix", "nearest neighbours", _BLUE),
        ("successors_share_prefix", "items that follow", _ORANGE),
    ):
        axis.plot(names, [level[key] for level in report["levels"]], marker="o", label=label, color=colour)
    axis.set_ylim(0, 1)
    axis.set_title("pairs with the same prefix", fontsize=8)
    axis.set_xlabel("prefix", fontsize=8)
    axis.legend(fontsize=7)


def _draw_explained(axis: Any, report: dict[str, Any]) -> None:
    shares = [level["variance_explained"] for level in report["levels"]]
    names = [_prefix_name(level) for level, share in enumerate(shares) if share is not None]
    axis.bar(names, [share for share in shares if share is not None], color=_BLUE, width=0.6)
    axis.set_ylim(0, 1)
    axis.set_title("variance of the vectors explained", fontsize=8)
    axis.set_xlabel("prefix", fontsize=8)


def _draw_buckets(axis: Any, raw_codes: np.ndarray, codes: np.ndarray) -> None:
    """Items whose SID belongs to 1, 2, 3, ... items."""
    before, after = bucket_sizes(raw_codes), bucket_sizes(codes)
    most = min(8, int(before.max()))
    sizes = np.arange(1, most + 1)
    for counts, label, colour, shift in (
        (before, "before", _GREY, -0.2),
        (after, "after", _BLUE, 0.2),
    ):
        items = np.bincount(np.minimum(counts, most), weights=counts, minlength=most + 1)[1:]
        axis.bar(sizes + shift, items, width=0.4, label=label, color=colour)
    axis.set_xticks(sizes, [*map(str, sizes[:-1]), f"{most}+" if most < before.max() else str(most)])
    axis.set_title("items by the number that share their SID", fontsize=8)
    axis.set_xlabel("items with that SID", fontsize=8)
    axis.set_ylabel("items", fontsize=8)
    axis.legend(fontsize=7)


def _prefix_name(level: int) -> str:
    return LETTERS[0] if level == 0 else f"{LETTERS[0]}..{LETTERS[level]}"
