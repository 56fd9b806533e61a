"""Errors that training raises on purpose, for the person who started it."""

from __future__ import annotations

from service.errors import GtirecError


class TrainingError(GtirecError):
    """Training cannot go on; the message says why and what to do."""


class RunBusy(TrainingError):
    """Another process works in the same run's folder."""


class ArmUnavailable(TrainingError):
    """An arm of grounding cannot run with this base model or this data; the message says why."""
