"""Errors about the data a user brings."""

from __future__ import annotations

from training.errors import TrainingError


class DataError(TrainingError):
    """The input data cannot be used as it is; the message says where and what to do."""
