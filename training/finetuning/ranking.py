"""Ranking fine-tuning: after SFT, teach the model to prefer the target over what it would answer instead.

The candidates of a training row are the model's own constrained beams, as the service would answer,
less the target. The loss is that of S-DPO (arXiv:2406.09215), softmax over all of a row's negatives at
once, with every negative weighted by the NDCG that changing places with the target would bring
(LambdaRank's weight); plain cross-entropy on the target anchors it, for without that rankings win at
the top and lose below. The stage keeps its result only if validation NDCG@10 rises by more than noise.

Shapes: R rows, C negatives of a row, L levels, b rows of a step, T tokens of the longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from service.bundle import Level, PromptTemplate
from service.engine.torch_engine import TorchDecoder
from training.errors import TrainingError
from training.evaluation.baselines import spread
from training.evaluation.evaluate import spell_prompts
from training.evaluation.intervals import paired_intervals
from training.evaluation.metrics import ranking_metrics
from training.evaluation.serving_order import ServingOrder
from training.evaluation.validation import Validation
from training.finetuning.config import RankingConfig
from training.items.dataset import Dataset
from training.learning.batches import Stream, derive_seed
from training.learning.loop import Loop, LoopSettings
from training.learning.precision import autocast, choose_attention
from training.learning.schedule import CosineSchedule

_ROWS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Candidates:
    """What the model would answer, beside what came next.

    Attributes:
        prompts: token ids of every row's prompt.
        sids: token ids of the target's SID, then of the negatives', best beam first.
            Shape: (R, 1 + C, L), int64.
        weights: of the negatives, positive, mean 1 in a row. Shape: (R, C), float32.
    """

    prompts: list[list[int]]
    sids: np.ndarray
    weights: np.ndarray


def collect_candidates(
    decoder: Any,
    dataset: Dataset,
    order: ServingOrder,
    levels: Sequence[Level],
    prompt: PromptTemplate,
    config: RankingConfig,
) -> Candidates:
    """Decode training rows with the fine-tuned model.

    Raises:
        TrainingError: the catalogue has too few SIDs for so many negatives.
    """
    num_beams = config.num_negatives + 1
    if order.trie.num_leaves < num_beams:
        raise TrainingError(
            f"{order.trie.num_leaves} semantic IDs do not give {config.num_negatives} negatives beside the "
            "target; lower finetuning.ranking.num_negatives"
        )
    rows = spread(dataset.train, config.rows)
    prompts = spell_prompts(rows["history"], order, levels, prompt)
    targets = order.codes_of_row[order.row_of_item[rows["target"].to_numpy()]].astype(np.int64)
    first_ids = np.asarray([level.first_token_id for level in levels], dtype=np.int64)
    sids, weights = [], []
    for at in tqdm(range(0, len(prompts), _ROWS_AT_ONCE), desc="candidates", unit="batch"):
        chunk = prompts[at : at + _ROWS_AT_ONCE]
        for beams, target in zip(
            decoder.decode(chunk, [num_beams] * len(chunk)), targets[at : at + _ROWS_AT_ONCE], strict=True
        ):
            is_target = (beams.codes == target).all(axis=1)
            rank = int(is_target.argmax()) + 1 if is_target.any() else num_beams + 1
            negatives = np.flatnonzero(~is_target)[: config.num_negatives]
            sids.append(np.concatenate([target[None], beams.codes[negatives]]) + first_ids)
            weights.append(_exchange_weights(rank, negatives + 1))
    return Candidates(prompts, np.stack(sids), np.stack(weights))


def _exchange_weights(target_rank: int, ranks: np.ndarray) -> np.ndarray:
    """NDCG that the target gains or loses by changing places with each negative, mean 1. Shape: (C,)."""
    gain = np.abs(1 / np.log2(1 + target_rank) - 1 / np.log2(1 + ranks))
    return (gain / gain.mean()).astype(np.float32)


class RankingLoss(nn.Module):
    """S-DPO over the candidates of a row, and cross-entropy on the target.

    Args:
        model: Hugging Face causal LM.
        config: beta and the anchor's weight.
        num_levels: L.
    """

    def __init__(self, model: nn.Module, config: RankingConfig, num_levels: int) -> None:
        super().__init__()
        self._num_levels = num_levels
        self.model: Any = model
        self._config = config

    def logprobs(self, ids: Tensor, ends: Tensor) -> Tensor:
        """Log-probability of the SID at the end of every sequence.

        Shapes: (b, 1 + C, T), (b, 1 + C) -> (b, 1 + C), float32.
        """
        ids, last = ids.flatten(0, 1), ends.flatten()
        hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        places = last[:, None] - self._num_levels + torch.arange(self._num_levels, device=ids.device)
        states = hidden.gather(1, (places - 1)[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.model.lm_head(states).float()
        nll = F.cross_entropy(logits.flatten(0, 1), ids.gather(1, places).flatten(), reduction="none")
        return -nll.view(*ends.shape, self._num_levels).sum(dim=-1)

    def forward(self, ids: Tensor, ends: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
        """Sum over the rows of a step.

        Args:
            ids: prompt and SID of every candidate, the target first. Shape: (b, 1 + C, T), int64.
            ends: tokens of every sequence. Shape: (b, 1 + C), int64.
            reference: log-probabilities before this training. Shape: (b, 1 + C).
            weights: of the negatives. Shape: (b, C).
        """
        logprobs = self.logprobs(ids, ends)
        gained = self._config.beta * (logprobs - reference)
        against = torch.logsumexp(gained[:, 1:] - gained[:, :1] + weights.log(), dim=1)
        return (F.softplus(against) - self._config.anchor * logprobs[:, 0]).sum()


@dataclass(frozen=True)
class CandidatePart:
    """Rows computed at once; see `RankingLoss.forward`."""

    inputs: tuple[Tensor, ...]

    @property
    def num_labels(self) -> int:
        """Rows."""
        return len(self.inputs[-1])

    def to(self, device: torch.device) -> CandidatePart:
        """The same on another device."""
        return CandidatePart(tuple(tensor.to(device) for tensor in self.inputs))


class CandidateBatches:
    """Rows of every step, as a function of (seed, step)."""

    def __init__(self, candidates: Candidates, reference: Tensor, batch_rows: int, *, seed: int) -> None:
        self._candidates = candidates
        self._reference = reference
        self._count = min(batch_rows, len(candidates.prompts))
        self._stream = Stream(len(candidates.prompts), seed)

    def at(self, step: int) -> list[CandidatePart]:
        """The rows of one step, in one part."""
        rows = self._stream.take(step * self._count, self._count)
        return [part_of(self._candidates, self._reference, rows)]


def part_of(candidates: Candidates, reference: Tensor, rows: np.ndarray) -> CandidatePart:
    """Spell out some rows, padded on the right."""
    num_levels = candidates.sids.shape[2]
    lengths = torch.tensor([len(candidates.prompts[row]) + num_levels for row in rows])
    ids = torch.zeros(len(rows), candidates.sids.shape[1], int(lengths.max()), dtype=torch.int64)
    for place, row in enumerate(rows):
        prompt = candidates.prompts[row]
        ids[place, :, : len(prompt)] = torch.tensor(prompt)
        ids[place, :, len(prompt) : len(prompt) + num_levels] = torch.from_numpy(candidates.sids[row])
    ends = lengths[:, None].expand(-1, ids.shape[1])
    weights = torch.from_numpy(candidates.weights[rows]).clamp(min=1e-6)
    return CandidatePart((ids, ends, reference[torch.from_numpy(rows)], weights))


@torch.no_grad()
def reference_logprobs(objective: RankingLoss, candidates: Candidates, precision: Any) -> Tensor:
    """What the model thinks of the candidates before the training. Shape: (R, 1 + C), float32."""
    shape = candidates.sids.shape
    device = next(objective.parameters()).device
    found = []
    for at in range(0, shape[0], _ROWS_AT_ONCE):
        rows = np.arange(at, min(at + _ROWS_AT_ONCE, shape[0]))
        ids, ends, *_ = part_of(candidates, torch.zeros(shape[:2]), rows).to(device).inputs
        with autocast(precision, device):
            found.append(objective.logprobs(ids, ends).cpu())
    return torch.cat(found)


def rank_finetune(
    model: nn.Module,
    dataset: Dataset,
    validation: Validation,
    config: RankingConfig,
    *,
    levels: Sequence[Level],
    prompt: PromptTemplate,
    seed: int,
    directory: Path,
) -> dict[str, Any]:
    """Train in place; put the weights back if validation does not gain by more than noise.

    Args:
        model: fine-tuned Hugging Face causal LM, in eval mode and left in it.
        dataset: its training rows are decoded.
        validation: what decides; it knows SIDs and trie.
        config: how.
        levels: token ranges of the levels.
        prompt: the template that serves.
        seed: of the order of rows.
        directory: for the checkpoint, ranking.st.

    Returns:
        NDCG@10 and HR@10 before and after, the paired 95 % interval of the NDCG@10 difference, and
        whether the result was kept.
    """
    device = next(model.parameters()).device
    before = validation.ranks(model)
    decoder = TorchDecoder(model, validation.order.trie, levels)
    candidates = collect_candidates(decoder, dataset, validation.order, levels, prompt, config)
    kept_weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    choose_attention(model.requires_grad_(True), config.precision)
    objective = RankingLoss(model, config, len(levels))
    reference = reference_logprobs(objective, candidates, config.precision)
    schedule = CosineSchedule(
        config.learning_rate, 0.0, warmup_steps=round(0.1 * config.steps), steps=config.steps
    )
    settings = LoopSettings(
        schedule=schedule,
        seed=derive_seed(seed, "ranking", "loop"),
        precision=config.precision,
        title="ranking",
    )
    loop = Loop(
        objective,
        dict(model.named_parameters()),
        CandidateBatches(candidates, reference, config.batch_rows, seed=derive_seed(seed, "ranking")),
        settings,
        checkpoint=directory / "ranking.st",
    )
    loop.run()
    after = validation.ranks(model)
    low, high = paired_intervals(after, before, seed=seed)["NDCG@10"]
    is_kept = low > 0
    if not is_kept:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(kept_weights[name].to(device))
    return {
        "before": _figures(before),
        "after": _figures(after),
        "NDCG@10_difference": [round(low, 6), round(high, 6)],
        "is_kept": is_kept,
        "losses": loop.state["losses"],
    }


def _figures(ranks: np.ndarray) -> dict[str, float]:
    metrics = ranking_metrics(ranks, (1, 5, 10))
    return {name: round(metrics[name], 6) for name in ("HR@1", "HR@10", "NDCG@10")}
