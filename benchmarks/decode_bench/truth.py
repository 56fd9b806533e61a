"""The exhaustive ranking: every item's true probability, by Hugging Face's own forward pass.

Nothing of our decoder takes part: the prompt's cache is Hugging Face's, copied for every row, and
each distinct prefix of three codes is run through the model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from decode_bench.torch_engines import load_model
from service.bundle import load_bundle

ROWS_AT_ONCE = 512


class ExhaustiveRanking:
    """Ranks a whole catalogue for a prompt, in float32.

    Args:
        bundle_dir: the bundle.
    """

    def __init__(self, bundle_dir: Path) -> None:
        bundle = load_bundle(bundle_dir)
        self._model = load_model(bundle, "float32")
        self.sids = np.unique(np.asarray(bundle.semantic_ids, dtype=np.int64), axis=0)
        self._tokens = torch.from_numpy(bundle.manifest.tokens_of(self.sids).astype(np.int64))

    @torch.inference_mode()
    def logprobs(self, prompt: list[int]) -> np.ndarray:
        """log p(SID | prompt) of every SID. Shape: (M,), float32."""
        tokens = self._tokens
        prefixes, prefix_of = torch.unique(tokens[:, :-1], dim=0, return_inverse=True)
        root = self._model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        total = root.logits[0, -1].log_softmax(-1)[tokens[:, 0]]
        low, high = int(tokens.min()), int(tokens.max()) + 1
        steps = torch.empty(len(prefixes), prefixes.shape[1], high - low)  # columns of SID tokens only
        for first in range(0, len(prefixes), ROWS_AT_ONCE):
            rows = prefixes[first : first + ROWS_AT_ONCE]
            cache = self._model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1).past_key_values
            cache.batch_repeat_interleave(len(rows))
            logits = self._model(rows, past_key_values=cache).logits
            steps[first : first + len(rows)] = logits.log_softmax(-1)[..., low:high]
        for position in range(prefixes.shape[1]):
            total = total + steps[prefix_of, position, tokens[:, position + 1] - low]
        return total.numpy()

    def best(self, prompt: list[int], count: int) -> list[tuple[int, ...]]:
        """The most probable SIDs, best first."""
        order = np.argsort(-self.logprobs(prompt), kind="stable")[:count]
        return [tuple(sid) for sid in self.sids[order].tolist()]
