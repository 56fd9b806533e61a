"""A Hugging Face encoder: pooling, padding, and the guard against other weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.errors import BundleError
from service.semantic_ids.text_encoder import load_encoder
from service.semantic_ids.transformer_encoder import TransformerEncoder, TransformerSpec

WORDS = ["red", "green", "blue", "lamp", "desk", "chair", "shelf", "with", "and", "steel"]
TEXTS = ["red lamp", "green steel desk with shelf and chair", "", "blue chair", "lamp"]


def write_model(directory: Path, seed: int = 0) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    plain = Tokenizer(
        WordLevel({word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}, unk_token="<unk>")
    )
    plain.pre_tokenizer = Whitespace()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=3 + len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_a_text_alone_and_in_company_has_the_same_vector(model_dir: Path, pooling: Any) -> None:
    encoder = TransformerEncoder.open(TransformerSpec(name=str(model_dir), pooling=pooling), batch_size=2)
    together = encoder.transform(TEXTS)
    alone = np.concatenate([encoder.transform([text]) for text in TEXTS])
    assert together == pytest.approx(alone, abs=1e-5)
    assert together.shape == (len(TEXTS), encoder.dim)
    lengths = np.linalg.norm(together, axis=1)
    assert lengths == pytest.approx([0.0 if not text else 1.0 for text in TEXTS], abs=1e-5)


@pytest.mark.parametrize("ship_weights", [True, False])
def test_saved_and_loaded_encodes_the_same(model_dir: Path, tmp_path: Path, ship_weights: bool) -> None:
    spec = TransformerSpec(name=str(model_dir), text_prefix="red ", kind="base_lm", max_tokens=5)
    encoder = TransformerEncoder.open(spec)
    encoder.save(tmp_path, ship_weights=ship_weights)
    assert (tmp_path / "model" / "model.safetensors").is_file() == ship_weights
    loaded = load_encoder(tmp_path)
    assert loaded.transform(TEXTS) == pytest.approx(encoder.transform(TEXTS), abs=1e-5)
    named = json.loads((tmp_path / "encoder.json").read_text())["name"]
    assert named == (model_dir.name if ship_weights else str(model_dir))


def test_other_weights_are_refused(model_dir: Path, tmp_path: Path) -> None:
    TransformerEncoder.open(TransformerSpec(name=str(model_dir))).save(tmp_path, ship_weights=False)
    with pytest.raises(BundleError, match="gives other vectors than in training"):
        load_encoder(tmp_path, model=write_model(tmp_path / "other", seed=1))


def test_missing_weights_are_explained(tmp_path: Path) -> None:
    spec = TransformerSpec(name=str(tmp_path / "nowhere"))
    (tmp_path / "encoder.json").write_text(spec.model_dump_json())
    with pytest.raises(BundleError, match="cannot be loaded"):
        load_encoder(tmp_path)


def test_an_unknown_or_damaged_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text('{"kind": "future"}')
    with pytest.raises(BundleError, match="unknown kind 'future'"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text('{"kind": "transformer"}')
    with pytest.raises(BundleError, match="cannot be read"):
        load_encoder(tmp_path)
