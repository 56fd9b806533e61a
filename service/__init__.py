"""Serve a semantic-ID recommendation model: bundle -> trie -> engine -> Redis catalogue -> HTTP."""

__version__ = "0.1.0"
