"""Semantic IDs: text embeddings, residual k-means, collisions, quality."""
