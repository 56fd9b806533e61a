"""Engines: one protocol, three ways to run the language model."""
