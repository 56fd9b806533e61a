"""Text to vector by a Hugging Face model: an embedding model, or the base LM's own hidden states.

A small model's weights travel with the encoder (`model/` beside encoder.json); a large one is named.
Either way encoder.json holds the vector of a fixed sentence, so that other weights under the same
name, or another pooling, are noticed before they give wrong semantic IDs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import BundleError
from service.semantic_ids.tfidf_encoder import unit_rows

_CHECK_TEXT = "A red steel lamp with 3 screws, 1/2 inch."
_CHECK_TOLERANCE = 0.02  # of a unit vector; other hardware and bf16 stay below
_ABOUT, _MODEL = "encoder.json", "model"


class TransformerSpec(BaseModel):
    """`encoder.json` of a transformer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["transformer", "base_lm"] = "transformer"
    name: str = Field(description="hub name or folder the weights came from")
    revision: str | None = Field(default=None, description="commit or tag of a hub model")
    pooling: Literal["mean", "last", "cls"] = "mean"
    max_tokens: int = Field(default=256, ge=1, description="longer texts are cut")
    text_prefix: str = Field(default="", description="put before every text, as some models ask for")
    check: tuple[float, ...] = Field(default=(), description="vector of the fixed sentence")


class TransformerEncoder:
    """A loaded model; see `open`."""

    def __init__(self, spec: TransformerSpec, model: Any, tokenizer: Any, batch_size: int = 64) -> None:
        self.spec = spec
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size

    @classmethod
    def open(
        cls, spec: TransformerSpec, location: str | None = None, *, batch_size: int = 64
    ) -> TransformerEncoder:
        """Load weights and tokenizer.

        Args:
            spec: what to load, and how to use it.
            location: hub name or folder, if not `spec.name`.
            batch_size: texts that go through the model at once.

        Raises:
            BundleError: they cannot be loaded, or are not those that `spec.check` was made with.
        """
        from transformers import AutoModel, AutoTokenizer

        auto_model: Any = AutoModel
        auto_tokenizer: Any = AutoTokenizer
        where = location or spec.name
        revision = None if location else spec.revision
        try:
            tokenizer = auto_tokenizer.from_pretrained(where, revision=revision)
            model = auto_model.from_pretrained(
                where, revision=revision, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise BundleError(f"the text encoder {where} cannot be loaded: {error}") from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = cls(spec, model.eval().to(device), tokenizer, batch_size)
        if spec.check:
            vector = encoder.transform([_CHECK_TEXT])[0]
            if vector.shape != (len(spec.check),) or np.abs(vector - spec.check).max() > _CHECK_TOLERANCE:
                raise BundleError(
                    f"the text encoder {where} gives other vectors than in training; "
                    f"bring the weights of {spec.name}, revision {spec.revision}"
                )
        return encoder

    @property
    def dim(self) -> int:
        """Hidden width of the model, D."""
        return int(self._model.config.hidden_size)

    @property
    def num_bytes(self) -> int:
        """Size of the weights."""
        return sum(weights.numel() * weights.element_size() for weights in self._model.parameters())

    @torch.inference_mode()
    def transform(
        self, texts: Sequence[str], *, on_progress: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Unit vectors of texts, whatever their order and company.

        Args:
            texts: an empty one gives the zero vector.
            on_progress: called with the number of texts done since the last call.

        Returns:
            Shape: (N, D), float32.
        """
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        order = sorted((n for n in range(len(texts)) if texts[n].strip()), key=lambda n: -len(texts[n]))
        for at in range(0, len(order), self._batch_size):
            chosen = order[at : at + self._batch_size]
            vectors[chosen] = self._pooled([self.spec.text_prefix + texts[n] for n in chosen])
            if on_progress is not None:
                on_progress(len(chosen))
        return unit_rows(vectors)

    def _pooled(self, texts: list[str]) -> np.ndarray:
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.spec.max_tokens, return_tensors="pt"
        ).to(self._model.device)
        mask = batch["attention_mask"]
        hidden = self._model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        if self.spec.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.spec.pooling == "last":
            pooled = hidden[torch.arange(len(texts), device=hidden.device), mask.sum(1) - 1]
        else:
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return pooled.float().cpu().numpy()

    def save(self, directory: Path, *, ship_weights: bool) -> None:
        """Write encoder.json with the check vector, and the weights if they are to travel along."""
        directory.mkdir(parents=True, exist_ok=True)
        check = tuple(float(value) for value in self.transform([_CHECK_TEXT])[0])
        folder = Path(self.spec.name)
        name = folder.name if ship_weights and folder.is_dir() else self.spec.name
        spec = self.spec.model_copy(update={"check": check, "name": name})
        (directory / _ABOUT).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if ship_weights:
            self._model.save_pretrained(directory / _MODEL)
            self._tokenizer.save_pretrained(directory / _MODEL)

    @classmethod
    def load(cls, directory: Path, *, model: str | Path | None = None) -> TransformerEncoder:
        """Open a saved encoder: from `model`, else its own weights, else the name it was made from.

        Raises:
            BundleError: encoder.json is damaged, or the weights are missing or others.
        """
        try:
            spec = TransformerSpec.model_validate_json((directory / _ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise BundleError(f"the text encoder in {directory} cannot be read ({error})") from error
        shipped = directory / _MODEL
        location = str(model) if model else str(shipped) if shipped.is_dir() else None
        return cls.open(spec, location)
