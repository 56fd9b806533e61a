"""Errors that training raises on purpose, for the person who started it."""

from __future__ import annotations

from service.errors import GtirecError


class TrainingError(GtirecError):
    """Training cannot go on; the message says why and what to do."""
