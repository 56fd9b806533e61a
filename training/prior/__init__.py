"""Fit the item prior, by which a bundle orders what the model proposes."""
