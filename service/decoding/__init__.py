"""Constrained decoding: the trie over semantic IDs, the beam search, and the shared-prefix forward pass.

Shapes: N items, L levels, K codes of a level, R requests, B live beams, W beam width kept.
"""
