"""Does free text do what it should? The same rows with no text, the right one, and a wrong one.

The right text is drawn from the words of the row's target (as in training, with another seed), the
wrong one is another row's. It measures whether the text is heard, not how well people's own words
are understood: nobody's queries are in the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from service.bundle.context_reader import ContextReader
from training.evaluation.baselines import spread
from training.evaluation.config import EvaluationConfig
from training.evaluation.evaluate import RowDecoder
from training.evaluation.intervals import paired_intervals
from training.evaluation.metrics import ranking_metrics
from training.items.context_text import draw_contexts
from training.items.dataset import Dataset

_SEED = 1_000_003  # not one that training draws its texts with
_SHOWN = ("HR@1", "HR@10", "NDCG@10")


def measure_context(
    decoder: RowDecoder,
    dataset: Dataset,
    rows: pl.DataFrame,
    *,
    reader: ContextReader,
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Rank the targets three times.

    Args:
        decoder: the model.
        dataset: its items' words are the texts.
        rows: what is measured; at most `config.context_rows` of them, evenly spread.
        reader: text to token ids.
        config: how many rows, how many resamples.

    Returns:
        "none", "right", "wrong": HR@1, HR@10, NDCG@10 and mean_rank each; "right_minus_none": paired
        95 % intervals; rows; missed_rank, the rank that a target counts as that no beam reached.
    """
    rows = spread(rows, config.context_rows)
    texts = draw_contexts(dataset.items, rows["target"].to_list(), seed=_SEED)
    token_ids = [reader.token_ids(text) for text in texts]
    contexts = {"none": None, "right": token_ids, "wrong": [*token_ids[1:], *token_ids[:1]]}
    ranks = {
        name: decoder.rank(rows, label=f"text: {name}", contexts=context).ranks
        for name, context in contexts.items()
    }
    missed_rank = decoder.beam_width + 1
    effect: dict[str, Any] = {"rows": rows.height, "missed_rank": missed_rank}
    for name, found in ranks.items():
        metrics = ranking_metrics(found)
        effect[name] = {metric: round(metrics[metric], 6) for metric in _SHOWN}
        effect[name]["mean_rank"] = round(float(np.where(found > 0, found, missed_rank).mean()), 2)
    intervals = paired_intervals(ranks["right"], ranks["none"], num_resamples=config.num_resamples)
    effect["right_minus_none"] = {
        name: [round(bound, 6) for bound in bounds] for name, bounds in intervals.items() if name in _SHOWN
    }
    return effect
