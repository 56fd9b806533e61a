"""How good the model is right now, on validation rows: ranks as served, and the plain loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn

from service.bundle import Level, PromptTemplate
from training.evaluation.baselines import spread
from training.evaluation.validation import Validation
from training.finetuning.config import FinetuningConfig
from training.finetuning.examples import row_examples
from training.items.dataset import Dataset
from training.learning.batches import in_order
from training.learning.objective import NextTokenLoss


class ValidationProbe:
    """Measures a model on the same validation rows again and again.

    Args:
        dataset: its validation rows are read; test rows cannot be reached from here.
        codes: SIDs in item-index order. Shape: (N, L).
        levels: token ranges of the levels.
        prompt: the template that serves.
        config: how many rows, how many beams.

    Attributes:
        ranking: the part that decodes.
    """

    def __init__(
        self,
        dataset: Dataset,
        codes: np.ndarray,
        levels: Sequence[Level],
        prompt: PromptTemplate,
        config: FinetuningConfig,
    ) -> None:
        self.ranking = Validation(
            dataset,
            codes,
            levels,
            prompt,
            max_rows=config.validation_rows,
            beam_width=config.validation_beam_width,
        )
        rows = spread(dataset.valid, config.validation_rows)
        sid_tokens = codes.astype(np.int64) + np.asarray([level.first_token_id for level in levels])
        examples = row_examples(rows["history"], rows["target"].to_list(), sid_tokens, prompt)
        self._batches = in_order(examples, config.micro_batch_tokens)
        self._num_labels = examples.num_labels

    @property
    def num_rows(self) -> int:
        """Rows read."""
        return self.ranking.num_rows

    @torch.no_grad()
    def measure(self, model: nn.Module, precision: AbstractContextManager[Any]) -> dict[str, float]:
        """Item-level HR@K, NDCG@K and MRR, and "valid_loss", the mean loss per SID token in nats.

        Args:
            model: in eval mode.
            precision: the run's compute precision, for the loss; ranks are computed in float32.
        """
        numbers = self.ranking.metrics(model)
        objective = NextTokenLoss(model)
        device = next(model.parameters()).device
        total = 0.0
        with precision:
            for micro in self._batches:
                placed = micro.to(device)
                total += float(objective(placed.ids, placed.is_label, placed.lengths))
        return {**numbers, "valid_loss": total / max(1, self._num_labels)}
