"""Measure a model as it will be served, beside baselines on the same rows."""
