"""Measure a model as it will be served, beside baselines on the same rows."""

from training.evaluation.config import EvaluationConfig

__all__ = ["EvaluationConfig"]
