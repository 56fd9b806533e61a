"""Histories as training examples, spelled by the very template that serves.

"sequences": windows of a user's whole sequence in the sequence style, where the model learns every
item of the window in one pass. A window holds history_limit + 1 items, so nothing is learned with
more history than is served. "rows": one example per (history, target), loss on the answer only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import polars as pl

from service.bundle import ContextReader, PromptTemplate
from training.errors import TrainingError
from training.items.context_text import draw_contexts
from training.items.dataset import Dataset
from training.learning.examples import Examples
from training.learning.windows import windows


def sequence_examples(
    sequences: pl.Series,
    sid_tokens: np.ndarray,
    prompt: PromptTemplate,
    *,
    stride: int | None = None,
    include_first_item: bool = False,
) -> Examples:
    """Windows of whole sequences.

    Args:
        sequences: lists of item indices, oldest first.
        sid_tokens: SID token ids of the items. Shape: (N, L).
        prompt: a template in sequence style.
        stride: see `windows`; default half the history limit.
        include_first_item: learn the first item of every sequence from the prefix alone.

    Raises:
        TrainingError: the template puts tokens between items or before the answer, or the first
            item is to be learned and nothing stands before it.
    """
    if prompt.separator_token_ids or prompt.suffix_token_ids:
        raise TrainingError(
            "finetuning.examples = 'sequences' needs prompt.style = 'sequence'; the chat style learns "
            "from 'rows'"
        )
    if include_first_item and not prompt.prefix_token_ids:
        raise TrainingError("finetuning.include_first_item needs a start token, and this base model has none")
    size = prompt.history_limit + 1
    stride = stride or max(1, prompt.history_limit // 2)
    num_levels = sid_tokens.shape[1]
    tokens: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for items in sequences.to_list():
        spelled = sid_tokens[items]
        for start, end, counted in windows(len(items), size, stride):
            ids = [*prompt.token_ids(spelled[start : end - 1]), *spelled[end - 1].tolist()]
            first = 0 if include_first_item and start == 0 and counted == 1 else counted - start
            is_label = np.zeros(len(ids), dtype=bool)
            is_label[len(ids) - (end - start - first) * num_levels :] = True
            tokens.append(np.asarray(ids, dtype=np.int32))
            labels.append(is_label)
    return _joined(tokens, labels)


def row_examples(
    histories: pl.Series, targets: Sequence[int], sid_tokens: np.ndarray, prompt: PromptTemplate
) -> Examples:
    """One example per row: the serving prompt, then the target's SID, which alone is learned.

    Args:
        histories: lists of item indices, oldest first.
        targets: item indices.
        sid_tokens: SID token ids of the items. Shape: (N, L).
        prompt: any template.
    """
    pairs: Iterable[tuple[list[int], list[int]]] = (
        (prompt.token_ids(sid_tokens[history]), sid_tokens[target].tolist())
        for history, target in zip(histories.to_list(), targets, strict=True)
    )
    return Examples.of_answers(pairs)


def context_examples(
    dataset: Dataset, sid_tokens: np.ndarray, prompt: PromptTemplate, reader: ContextReader, *, seed: int
) -> Examples:
    """Training rows with a text drawn from the target's words before the history; the answer is learned.

    Every row comes twice, with two texts, once with its whole history and once with what a random cut
    leaves of it, often nothing: a text must count by itself too.

    Args:
        dataset: its training rows.
        sid_tokens: SID token ids of the items. Shape: (N, L).
        prompt: a template with a context frame.
        reader: the way from text to token ids that serves.
        seed: of texts and cuts.
    """
    histories, targets = dataset.train["history"].to_list(), dataset.train["target"].to_list()
    rng = np.random.default_rng(seed)

    def pairs() -> Iterator[tuple[list[int], list[int]]]:
        for repeat in range(2):
            texts = draw_contexts(dataset.items, targets, seed=seed + repeat)
            for history, target, text in zip(histories, targets, texts, strict=True):
                kept = history if repeat == 0 else history[len(history) - int(rng.integers(len(history))) :]
                ids = prompt.token_ids(sid_tokens[kept], reader.token_ids(text))
                yield ids, sid_tokens[target].tolist()

    return Examples.of_answers(pairs())


def _joined(tokens: list[np.ndarray], labels: list[np.ndarray]) -> Examples:
    if not tokens:
        raise TrainingError("there is no training sequence with two items or more to learn from")
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in tokens])]).astype(np.int64)
    return Examples(np.concatenate(tokens), np.concatenate(labels), starts)
