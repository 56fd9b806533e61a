"""Errors of the evaluation."""

from __future__ import annotations

from training.errors import TrainingError


class EvaluationError(TrainingError):
    """The model cannot be measured, or what it returned is no item."""
