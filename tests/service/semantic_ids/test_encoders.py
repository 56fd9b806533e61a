"""Text to vector to codes: saved and loaded unchanged, the same for a new item as for an old one."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from service.errors import BundleError
from service.semantic_ids.codebooks import Codebooks
from service.semantic_ids.item_text import ItemTextConfig, item_text
from service.semantic_ids.tfidf_encoder import TfidfEncoder
from training.errors import TrainingError
from training.semantic_ids.config import EncoderConfig
from training.semantic_ids.tfidf import fit_tfidf, taste_vectors

KINDS = {"tent": "canvas pole peg camp", "pan": "iron oil kitchen cook", "book": "paper novel author read"}
TEXTS = [
    f"{kind} {words.split()[n % 4]} {words.split()[(n + 1) % 4]}"
    for n in range(8)
    for kind, words in KINDS.items()
]
SEQUENCES = pl.Series([[n, n + 3, n + 6] for n in range(15)])


def fit(weight: float) -> tuple[TfidfEncoder, np.ndarray]:
    config = EncoderConfig(dim=6, max_share=0.9, collaborative_weight=weight, collaborative_dim=3)
    return fit_tfidf(TEXTS, SEQUENCES, config, seed=0)


def test_items_of_a_kind_lie_together() -> None:
    encoder, vectors = fit(0.0)
    assert vectors == pytest.approx(encoder.transform(TEXTS), abs=1e-6)
    similarity = vectors @ vectors.T
    kind = np.arange(len(TEXTS)) % 3
    same = kind[:, None] == kind[None]
    assert similarity[same].mean() > similarity[~same].mean() + 0.3


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_saved_and_loaded_encodes_the_same(tmp_path: Path, weight: float) -> None:
    encoder, vectors = fit(weight)
    encoder.save(tmp_path)
    new = ["a new tent with a pole", "words nobody has seen", ""]
    assert (TfidfEncoder.load(tmp_path).transform(new) == encoder.transform(new)).all()
    assert encoder.transform(new).shape == (3, vectors.shape[1])
    assert np.isfinite(encoder.transform(new)).all()


def test_the_taste_part_has_the_stated_length() -> None:
    encoder, vectors = fit(0.7)
    dim = encoder.components.shape[1]
    assert np.linalg.norm(vectors[:, dim:], axis=1) == pytest.approx(0.7, abs=1e-4)


def test_items_bought_together_have_like_taste() -> None:
    sequences = pl.Series([[0, 1, 0, 1]] * 5 + [[2, 3, 2, 3]] * 5)
    config = EncoderConfig(collaborative_weight=1.0, collaborative_dim=4)
    taste, evidence = taste_vectors(sequences, 5, config, seed=0)
    assert evidence[4] == 0 and not taste[4].any()
    # Each pair keeps only the other's company, so the pairs are apart from each other.
    assert abs(float(taste[0] @ taste[2])) < 1e-4


def test_a_damaged_encoder_is_refused(tmp_path: Path) -> None:
    fit(0.0)[0].save(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BundleError, match="cannot be read"):
        TfidfEncoder.load(tmp_path)


def test_texts_without_common_words_are_explained() -> None:
    with pytest.raises(TrainingError, match=r"lower encoder\.min_items"):
        fit_tfidf(["one", "two", "three"], SEQUENCES, EncoderConfig(), seed=0)


def test_the_text_of_an_item_repeats_what_counts() -> None:
    config = ItemTextConfig(title_weight=2, metadata_weight=1, description_chars=4)
    text = item_text("Tent", "Long story", '{"brand": "Birch", "price": 3, "categories": ["a", "b"]}', config)
    assert text.split("\n") == ["Tent ", "Tent ", "Birch ", "a b ", "Long"]


def test_codebooks_quantize_level_by_level(tmp_path: Path) -> None:
    books = Codebooks(
        (np.array([[0.0], [10.0]], dtype=np.float32), np.array([[-1.0], [2.0]], dtype=np.float32))
    )
    codes, before_last = books.encode(np.array([[11.5], [-2.0]], dtype=np.float32))
    assert codes.tolist() == [[1, 1], [0, 0]]
    assert before_last.ravel().tolist() == [1.5, -2.0]
    assert books.reconstruct(codes).ravel().tolist() == [12.0, -1.0]
    books.save(tmp_path / "books.safetensors")
    loaded = Codebooks.load(tmp_path / "books.safetensors")
    assert all((a == b).all() for a, b in zip(books.levels, loaded.levels, strict=True))
    with pytest.raises(BundleError, match="cannot be read"):
        Codebooks.load(tmp_path / "nothing.safetensors")
