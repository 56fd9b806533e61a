"""Constrained NDCG@10 on validation rows: what fine-tuning chooses its best checkpoint by.

Test rows cannot be reached from here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from service.bundle.manifest import Level
from service.bundle.prompt import PromptTemplate
from service.engine.torch_engine import TorchDecoder
from training.evaluation.baselines import spread
from training.evaluation.evaluate import RowDecoder
from training.evaluation.metrics import ranking_metrics
from training.evaluation.serving_order import ServingOrder
from training.items.dataset import Dataset


class Validation:
    """Measures a model on the same validation rows again and again.

    Args:
        dataset: its validation rows are read.
        codes: SIDs in item-index order. Shape: (N, L).
        levels: token ranges of the levels.
        prompt: the template that serves.
        max_rows: rows read at most, evenly spread, the same ones every time.
        beam_width: beams kept; at least 10.
        max_beam_rows: beams decoded at once.

    Attributes:
        order: the bundle's order of items and its trie.
    """

    def __init__(
        self,
        dataset: Dataset,
        codes: np.ndarray,
        levels: Sequence[Level],
        prompt: PromptTemplate,
        *,
        max_rows: int | None = 1000,
        beam_width: int = 20,
        max_beam_rows: int = 3200,
    ) -> None:
        if beam_width < 10:
            raise ValueError(f"beam_width must be at least 10 to measure NDCG@10, got {beam_width}")
        self._rows = spread(dataset.valid, max_rows)
        self.order = ServingOrder.build(dataset, codes, levels)
        self._levels = tuple(levels)
        self._prompt = prompt
        self._beam_width = beam_width
        self._max_beam_rows = max_beam_rows

    @property
    def num_rows(self) -> int:
        """Rows read."""
        return self._rows.height

    def metrics(self, model: nn.Module, *, label: str | None = None) -> dict[str, float]:
        """HR@K, NDCG@K for K up to 10, and MRR, item level.

        Args:
            model: Hugging Face causal LM; left in the mode (train or eval) it came in.
            label: name of the progress bar; None shows none.
        """
        return ranking_metrics(self.ranks(model, label=label), (1, 5, 10))

    def ranks(self, model: nn.Module, *, label: str | None = None) -> np.ndarray:
        """Rank of every row's target from 1, 0 for a miss. Shape: (rows,), int64."""
        return (
            RowDecoder(
                decoder=TorchDecoder(model, self.order.trie, self._levels),
                order=self.order,
                levels=self._levels,
                prompt=self._prompt,
                beam_width=self._beam_width,
                max_beam_rows=self._max_beam_rows,
            )
            .rank(self._rows, label=label)
            .ranks
        )


def validation_ndcg(
    model: nn.Module,
    *,
    dataset: Dataset,
    codes: np.ndarray,
    levels: Sequence[Level],
    prompt: PromptTemplate,
    max_rows: int | None = 1000,
    beam_width: int = 20,
) -> float:
    """NDCG@10 once; `Validation` for more than once, because it keeps the trie. In [0, 1]."""
    validation = Validation(dataset, codes, levels, prompt, max_rows=max_rows, beam_width=beam_width)
    return validation.metrics(model)["NDCG@10"]
