"""RQ-VAE: it learns, keeps its codes alive, resumes, and serving encodes as training did."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.errors import BundleError
from service.semantic_ids.codebooks import Codebooks
from training.learning.loop import Loop
from training.semantic_ids.config import RqVaeConfig
from training.semantic_ids.fit_rqvae import FittedRqVae, fit_rqvae
from training.semantic_ids.quality import Reconstruction
from training.semantic_ids.rqvae import RqVae
from training.semantic_ids.sinkhorn import balanced_codes

SMALL: dict[str, Any] = {
    "hidden_sizes": (32,), "latent_dim": 8, "steps": 150, "batch_size": 64, "revive_every": 20,
    "learning_rate": 3e-3, "dropout": 0.0, "regroup_every": 20,
}  # fmt: skip


def vectors(num_items: int = 400, dim: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, dim))
    found = centres[rng.integers(0, 20, num_items)] + 0.3 * rng.normal(size=(num_items, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def fit(directory: Path, **changes: Any) -> FittedRqVae:
    config = RqVaeConfig(**(SMALL | changes))
    return fit_rqvae(vectors(), 3, 16, config, seed=0, checkpoint=directory / "rqvae.st")


def explained(fitted: FittedRqVae, num_levels: int = 3) -> float:
    books = fitted.codebooks
    codes, _ = books.encode(books.project(vectors()))
    return Reconstruction(vectors(), books, fitted.decoder).explained(codes[:, :num_levels])


def dead_codes(fitted: FittedRqVae) -> int:
    codes, _ = fitted.codebooks.encode(fitted.codebooks.project(vectors()))
    return sum(16 - len(np.unique(codes[:, level])) for level in range(3))


def test_it_learns_and_every_level_adds(tmp_path: Path) -> None:
    fitted = fit(tmp_path)
    shares = [explained(fitted, num_levels) for num_levels in (1, 2, 3)]
    assert 0.3 < shares[0] < shares[2] and shares[2] > 0.55
    losses = [loss for _, loss in fitted.notes["losses"]]
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_saved_encodes_as_in_training(tmp_path: Path) -> None:
    books = fit(tmp_path, steps=20).codebooks
    books.save(tmp_path / "codebooks.safetensors")
    loaded = Codebooks.load(tmp_path / "codebooks.safetensors")
    assert loaded.input_dim == 16 and loaded.levels[0].shape == (16, 8)
    assert (loaded.encode(loaded.project(vectors()))[0] == books.encode(books.project(vectors()))[0]).all()


def test_an_encoder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    books = fit(tmp_path, steps=2).codebooks
    narrow = tuple(book[:, :5].copy() for book in books.levels)
    Codebooks(narrow, encoder=books.encoder).save(tmp_path / "codebooks.safetensors")
    with pytest.raises(BundleError, match="do not fit each other"):
        Codebooks.load(tmp_path / "codebooks.safetensors")


def test_dead_codes_are_revived(tmp_path: Path) -> None:
    # Far from everything at the start, most codes are never chosen.
    far: dict[str, Any] = {"kmeans_init": False, "sinkhorn_epsilon": 0.0, "steps": 120}
    left = dead_codes(fit(tmp_path / "a", revive_every=0, **far))
    mended = fit(tmp_path / "b", **far)
    assert mended.notes["revived_codes"] > 0
    assert dead_codes(mended) < left / 2


def test_k_means_starts_the_codebooks_where_the_items_are(tmp_path: Path) -> None:
    start: dict[str, Any] = {"steps": 1, "learning_rate": 1e-9, "revive_every": 0}
    assert dead_codes(fit(tmp_path / "a", **start)) <= 3
    assert dead_codes(fit(tmp_path / "b", kmeans_init=False, **start)) > 15


@pytest.mark.parametrize("kill_at", [7, 40, 45])
def test_killed_and_resumed_gives_the_same_codebooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    changes: dict[str, Any] = {"steps": 60, "diversity": 0.01, "dropout": 0.1}
    expected = fit(tmp_path / "whole", **changes)
    take_step = Loop._train_step

    def killed_before(self: Loop, step: int) -> float:
        if step == kill_at:
            self._save()
            raise KeyboardInterrupt
        return take_step(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "_train_step", killed_before)
        fit(tmp_path / "killed", **changes)
    resumed = fit(tmp_path / "killed", **changes)
    assert resumed.notes == expected.notes
    for one, other in zip(expected.codebooks.levels, resumed.codebooks.levels, strict=True):
        assert (one == other).all()


def test_the_diversity_term_draws_groups_together() -> None:
    torch.manual_seed(0)
    model = RqVae(16, 1, 16, RqVaeConfig(**SMALL, diversity=1.0))
    groups = torch.arange(16) // 4
    model.groups = [groups]
    optimizer = torch.optim.Adam(model.books.parameters(), lr=0.05)
    is_pair = (groups[:, None] == groups[None]) & ~torch.eye(16, dtype=torch.bool)

    def gap() -> float:
        unit = torch.nn.functional.normalize(model.books[0].detach(), dim=1)
        likeness = unit @ unit.T
        return float(likeness[is_pair].mean() - likeness[~is_pair].mean())

    before = gap()
    for _ in range(60):
        optimizer.zero_grad()
        model.losses(torch.from_numpy(vectors())).diversity.backward()
        optimizer.step()
    assert gap() > before + 0.3


def test_sinkhorn_spreads_evenly_and_stays_near() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(256, 2, generator=generator) ** 3  # crowded near the origin
    codes = torch.rand(16, 2, generator=generator)
    distances = torch.cdist(points, codes).square()
    counts = {
        "nearest": torch.bincount(distances.argmin(1), minlength=16),
        "even": torch.bincount(balanced_codes(distances, epsilon=0.01, num_iterations=200), minlength=16),
    }
    assert counts["even"].float().std() < counts["nearest"].float().std() / 2
    assert counts["even"].min() > counts["nearest"].min()
    # Points that sit on their own codes have nothing to gain from moving.
    own = torch.arange(50)[:, None].float()
    stays = balanced_codes((own - own.T).square(), epsilon=1e-4, num_iterations=50)
    assert (stays == torch.arange(50)).all()
