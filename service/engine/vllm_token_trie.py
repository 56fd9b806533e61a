"""The trie as a logits processor wants it: one array over all levels, in token ids.

Nodes are numbered breadth first through all levels, so the child at position j of the one array
of children is node j + 1 and the root is node 0: a node alone says its level.

Shapes: n rows, V vocabulary, M nodes, the root included.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from service.decoding.trie import Trie

NODE_KEY = "gtirec_node"  # in a request's `SamplingParams.extra_args`: the node its prompt ends at
TRIE_KEY = "gtirec_trie"  # and there, optional: the version of the trie that the node is of


class TokenTrie:
    """Children of every node as token ids.

    Args:
        trie: the bundle's trie.
        first_token_ids: token id of code 0 of every level.
    """

    def __init__(self, trie: Trie, first_token_ids: Sequence[int]) -> None:
        starts, tokens, below = [], [], 0
        for level, first_token in enumerate(first_token_ids):
            starts.append(trie.child_start[level][:-1].numpy().astype(np.int64) + below)
            codes = trie.child_code[level].numpy().astype(np.int32)
            tokens.append(codes + np.int32(first_token))
            below += len(codes)
        leaves = np.full(trie.num_leaves + 1, below, dtype=np.int64)
        self._starts = np.concatenate([*starts, leaves])  # (M + 1,)
        self._tokens = np.concatenate(tokens)  # (M - 1,), ascending within a node

    @property
    def num_nodes(self) -> int:
        """M."""
        return len(self._starts) - 1

    def children(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The nodes that tokens lead to. Beyond a leaf, or by a token not in the trie: the leaf level.

        Args:
            nodes, tokens: Shape: (m,), int64.

        Returns:
            The children, or a node without children (which leaves its row alone). Shape: (m,), int64.
        """
        low, end = self._starts[nodes], self._starts[nodes + 1]
        high = end
        while (is_open := low < high).any():  # binary search in all rows at once
            middle = (low + high) // 2
            is_smaller = is_open & (self._tokens[np.minimum(middle, len(self._tokens) - 1)] < tokens)
            low, high = np.where(is_smaller, middle + 1, low), np.where(is_open & ~is_smaller, middle, high)
        is_child = (low < end) & (self._tokens[np.minimum(low, len(self._tokens) - 1)] == tokens)
        return np.where(is_child, low + 1, self.num_nodes - 1)

    def mask(self, logits: torch.Tensor, rows: np.ndarray, nodes: np.ndarray) -> torch.Tensor:
        """Leave only the true log-probabilities of each row's children.

        Args:
            logits: Shape: (n, V), changed in place.
            rows: rows to mask, each once. Shape: (m,), int64.
            nodes: their nodes; a node beyond the trie, or a leaf, leaves its row alone. Shape: (m,).

        Returns:
            The logits.
        """
        nodes = np.minimum(nodes, self.num_nodes - 1)
        starts, counts = self._starts[nodes], self._starts[nodes + 1] - self._starts[nodes]
        has_children = counts > 0
        rows, starts, counts = rows[has_children], starts[has_children], counts[has_children]
        if not len(rows):
            return logits
        # Row of every child and its position among all children: one ragged gather, no loop.
        owner = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(owner)) - np.repeat(counts.cumsum() - counts, counts)
        columns = _on(logits, self._tokens[starts[owner] + within].astype(np.int64))
        chosen_rows, owner_rows = _on(logits, rows), _on(logits, owner)
        chosen = logits if len(rows) == len(logits) else logits[chosen_rows]
        normalizers = chosen.float().logsumexp(-1)
        values = chosen[owner_rows, columns].float() - normalizers[owner_rows]
        logits[chosen_rows] = float("-inf")
        logits[chosen_rows[owner_rows], columns] = values.to(logits.dtype)
        return logits


def _on(logits: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(logits.device, non_blocking=True)
