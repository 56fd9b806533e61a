"""The item prior: what is known about an item beside what the model says, as a small log-linear score.

    score(item | history) = logprob + bias[item] + sum over relations of
                            weight * log(floor + sum over the history of recency^age * strength[h, item])

`logprob` is the model's, age counts back from the newest item of the history (0). The bias holds
what does not depend on the history, such as a trend. All numbers are fitted when the model is made
(training/prior) and travel in the bundle; a bundle without a prior is ordered by the logprob alone.

Shapes: N items, T items of a history, C candidates, P related pairs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import BundleError

PRIOR_DIR = "prior"
_ABOUT = "prior.json"


@dataclass(frozen=True)
class Relation:
    """Which items follow which, and how strongly.

    Attributes:
        name: for people, and of its files.
        weight, floor, recency: see the module docstring. floor > 0, recency in (0, 1].
        starts: item h is related to `related[starts[h] : starts[h + 1]]`. Shape: (N + 1,), int64.
        related: item rows, ascending for every h. Shape: (P,), int32.
        strength: Shape: (P,), float32, > 0.
    """

    name: str
    weight: float
    floor: float
    recency: float
    starts: np.ndarray
    related: np.ndarray
    strength: np.ndarray

    def strengths(self, candidates: np.ndarray, history: np.ndarray) -> np.ndarray:
        """Sum over the history of recency^age * strength; rows of -1 relate to nothing.

        Args:
            candidates: item rows. Shape: (C,).
            history: item rows, oldest first. Shape: (T,).

        Returns:
            Shape: (C,), float64.
        """
        total = np.zeros(len(candidates))
        for age, row in enumerate(history[::-1].tolist()):
            first, end = (self.starts[row], self.starts[row + 1]) if row >= 0 else (0, 0)
            if first == end:
                continue
            related = self.related[first:end]
            at = np.minimum(np.searchsorted(related, candidates), end - first - 1)
            is_related = related[at] == candidates
            total += self.recency**age * np.where(is_related, self.strength[first:end][at], 0.0)
        return total


class _RelationAbout(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern="^[a-z_]+$")
    weight: float = Field(allow_inf_nan=False)
    floor: float = Field(gt=0, allow_inf_nan=False)
    recency: float = Field(gt=0, le=1)


class _About(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    history_limit: int = Field(ge=1)
    relations: tuple[_RelationAbout, ...] = ()


@dataclass(frozen=True)
class ItemPrior:
    """See the module docstring. Items are addressed by their row in the bundle.

    Attributes:
        history_limit: items of history read, newest kept.
        bias: Shape: (N,), float32.
        relations: what depends on the history.
    """

    history_limit: int
    bias: np.ndarray
    relations: tuple[Relation, ...] = ()

    def scores(self, logprobs: np.ndarray, candidates: np.ndarray, history: np.ndarray) -> np.ndarray:
        """What candidates are ordered by, descending.

        Args:
            logprobs: of the candidates, by the model. Shape: (C,).
            candidates: item rows; -1 for an item that the prior does not know (it came later):
                no bias, no relation. Shape: (C,), int64.
            history: item rows or -1, oldest first. Shape: (T,), int64.

        Returns:
            Shape: (C,), float64.
        """
        history = history[-self.history_limit :]
        is_known = candidates >= 0
        scores = logprobs + np.where(is_known, self.bias[np.maximum(candidates, 0)], 0.0)
        for relation in self.relations:
            strengths = np.where(is_known, relation.strengths(candidates, history), 0.0)
            scores = scores + relation.weight * np.log(relation.floor + strengths)
        return scores

    def save(self, directory: Path) -> None:
        """Write the files of the prior into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        abouts = tuple(
            _RelationAbout(name=r.name, weight=r.weight, floor=r.floor, recency=r.recency)
            for r in self.relations
        )
        about = _About(history_limit=self.history_limit, relations=abouts)
        (directory / _ABOUT).write_text(about.model_dump_json(indent=2) + "\n", encoding="utf-8")
        np.save(directory / "bias.npy", self.bias.astype(np.float32))
        for relation in self.relations:
            np.save(directory / f"{relation.name}_starts.npy", relation.starts.astype(np.int64))
            np.save(directory / f"{relation.name}_related.npy", relation.related.astype(np.int32))
            np.save(directory / f"{relation.name}_strength.npy", relation.strength.astype(np.float32))

    @classmethod
    def load(cls, directory: Path, num_items: int) -> ItemPrior:
        """Read and check what `save` wrote.

        Raises:
            BundleError: a file is missing or damaged, or does not fit `num_items`.
        """
        try:
            about = _About.model_validate(json.loads((directory / _ABOUT).read_text(encoding="utf-8")))
            bias = _read(directory / "bias.npy")
            relations = tuple(
                Relation(
                    **one.model_dump(),
                    starts=_read(directory / f"{one.name}_starts.npy"),
                    related=_read(directory / f"{one.name}_related.npy"),
                    strength=_read(directory / f"{one.name}_strength.npy"),
                )
                for one in about.relations
            )
        except (OSError, ValueError, ValidationError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BundleError(f"the item prior in {directory} is damaged ({reason}); export again") from error
        is_right = bias.shape == (num_items,) and bool(np.isfinite(bias).all())
        if not is_right or not all(_fits(relation, num_items) for relation in relations):
            raise BundleError(f"the item prior in {directory} does not fit {num_items} items; export again")
        return cls(about.history_limit, bias, relations)


def _read(file: Path) -> np.ndarray:
    return np.load(file, mmap_mode="r", allow_pickle=False)


def _fits(relation: Relation, num_items: int) -> bool:
    starts, related, strength = relation.starts, relation.related, relation.strength
    if starts.shape != (num_items + 1,) or related.ndim != 1 or related.shape != strength.shape:
        return False
    if starts[0] != 0 or starts[-1] != len(related) or (np.diff(starts) < 0).any():
        return False
    if not len(related):
        return True
    is_ascending = np.diff(related.astype(np.int64)) > 0
    is_ascending[starts[1:-1][(starts[1:-1] > 0) & (starts[1:-1] < len(related))] - 1] = True
    in_range = related.min() >= 0 and related.max() < num_items
    return bool(in_range and is_ascending.all() and np.isfinite(strength).all() and (strength > 0).all())
