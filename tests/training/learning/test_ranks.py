"""Several processes train as one does. Real processes over gloo, started by torchrun."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from training.learning.ranks import Ranks

# Trains a tiny model; argv: folder for weights and losses, step at which a rank dies (0: never), which rank,
# "recurrent" or "qwen3", which two processes share out (FSDP).
SCRIPT = """
import json, os, sys
from pathlib import Path
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
from safetensors.torch import save_file
from training.learning.batches import Batches
from training.learning.examples import Examples
from training.learning.loop import Loop, LoopSettings, LossLog
from training.learning.ranks import together
from training.learning.objective import NextTokenLoss
from training.learning.schedule import CosineSchedule
from training.learning.sharding import shard
from transformers import Qwen3Config, Qwen3ForCausalLM

STEPS = 12

class Watcher(LossLog):
    def __init__(self, folder, dies_at, victim):
        super().__init__(STEPS)
        self.folder, self.dies_at, self.victim = folder, dies_at, victim

    def after_step(self, loop, step, loss):
        scar = self.folder / "died"
        if step == self.dies_at and os.environ.get("RANK") == self.victim and not scar.exists():
            scar.touch()
            os._exit(9)
        if os.environ.get("RANK", "0") == "0":
            with (self.folder / "steps.jsonl").open("a") as file:
                file.write(json.dumps([step, loss]) + "\\n")
        return False

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.cell = nn.Embedding(50, 16), nn.GRU(16, 16, batch_first=True)
        self.never_used = nn.Parameter(torch.ones(2, 2))

    def forward(self, ids, is_label, lengths):
        states, _ = self.cell(self.embedding(ids))
        logits = F.linear(states[:, :-1], self.embedding.weight)
        return F.cross_entropy(logits[is_label[:, 1:]], ids[:, 1:][is_label[:, 1:]], reduction="sum")

def make_qwen3(num_ranks):
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=50, hidden_size=16, intermediate_size=24, head_dim=8,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True))
    objective = NextTokenLoss(model, is_packed=False)
    if num_ranks > 1:
        shard(objective, model.model.layers)
    return objective, model

def main(folder, dies_at, victim, kind):
    with together() as ranks:
        torch.manual_seed(0 if ranks.number == 0 else 99)  # rank 0's weights are everybody's
        objective = model = Recurrent()
        if kind == "qwen3":
            objective, model = make_qwen3(ranks.count)
        generator = np.random.default_rng(0)
        examples = Examples.of_answers(
            ([1], generator.integers(2, 40, size=generator.integers(1, 9)).tolist()) for _ in range(20))
        settings = LoopSettings(schedule=CosineSchedule(1e-2, 1e-3, warmup_steps=2, steps=STEPS), seed=3,
            weight_decay=0.1, average_decay=0.9, precision="fp32", checkpoint_seconds=0.0)
        batches = Batches([(examples, 7)], seed=1, max_tokens=16)
        loop = Loop(objective, dict(model.named_parameters()), batches, settings,
            checkpoint=folder / "checkpoint.st", watcher=Watcher(folder, dies_at, victim))
        loop.run()
        with loop.best_weights():
            if ranks.number == 0:
                save_file({n: p.detach().clone() for n, p in model.named_parameters()}, folder / "weights.st")

if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
"""


def torchrun(num_processes: int, *arguments: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", f"--nproc-per-node={num_processes}", "--max-restarts=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=900
    )


Run = tuple[dict[int, float], dict[str, Any]]


def train(
    folder: Path, num_processes: int, dies_at: int = 0, victim: int = 1, kind: str = "recurrent"
) -> Run:
    """Loss of every step, and the final weights."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    if num_processes == 1:
        runpy.run_path(str(script))["main"](folder, dies_at, str(victim), kind)
    else:
        root = str(Path(__file__).parents[3])
        done = torchrun(num_processes, script, folder, str(dies_at), str(victim), kind, PYTHONPATH=root)
        assert done.returncode == 0, done.stderr[-3000:]
    lines = (folder / "steps.jsonl").read_text().splitlines()
    return dict(map(json.loads, lines)), load_file(folder / "weights.st")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run by one process."""
    return train(tmp_path_factory.mktemp("ranks") / "one", 1)


def assert_same(one: Run, other: Run) -> None:
    assert one[0].keys() == other[0].keys()
    for step, loss in one[0].items():
        assert other[0][step] == pytest.approx(loss, rel=1e-5), step
    for name, values in one[1].items():
        np.testing.assert_allclose(other[1][name], values, atol=5e-4, err_msg=name)


def test_two_processes_have_the_curve_of_one(alone: Run, tmp_path: Path) -> None:
    together = train(tmp_path / "two", 2)
    assert_same(alone, together)
    # Nothing gave it a gradient, so not even the weight decay may touch it.
    np.testing.assert_array_equal(together[1]["never_used"], np.ones((2, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_leaves_no_trace(alone: Run, tmp_path: Path, victim: int) -> None:
    folder = tmp_path / "killed"
    assert_same(alone, train(folder, 2, dies_at=6, victim=victim))
    assert (folder / "died").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [0, 6])
def test_a_model_shared_out_learns_as_a_whole_one(tmp_path: Path, dies_at: int) -> None:
    alone = train(tmp_path / "one", 1, kind="qwen3")
    assert_same(alone, train(tmp_path / "two", 2, kind="qwen3", dies_at=dies_at))
    assert (tmp_path / "two/died").exists() == bool(dies_at)


def test_one_process_needs_no_group() -> None:
    ranks = Ranks.current()
    assert (ranks.number, ranks.count) == (0, 1)
    assert ranks.agree({"a": 1}) == {"a": 1}
    assert list(range(5))[ranks.rows] == list(range(5))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_row_belongs_to_one_rank(count: int) -> None:
    rows = [row for number in range(count) for row in list(range(7))[Ranks(number, count).rows]]
    assert sorted(rows) == list(range(7))


@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_a_whole_run_by_two_processes_ends_as_one_by_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    results = []
    for count, sharding in ((1, "none"), (2, "none"), (2, "full")):
        # Dropout draws other masks in other processes; everything else is the same.
        off = [f"finetuning.{part}_dropout=0" for part in ("embedding", "residual", "attention")]
        arguments: list[str | Path] = [
            "-m",
            "training",
            "all",
            "--config",
            root / "training/recipes/tiny.toml",
        ]
        precision = ("finetuning.precision=fp32", "base_model.made.precision=fp32")
        for change in (*off, *precision, f"finetuning.sharding={sharding}"):
            arguments += ["--set", change]
        arguments += ["--runs-dir", tmp_path / str(len(results))]
        done = torchrun(count, *arguments, PYTHONPATH=str(root))
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(done.stdout.splitlines()[-1])["stages"])
    one, *others = (result["finetuning"] for result in results)
    for other in others:
        assert one["valid NDCG@10"] == pytest.approx(other["valid NDCG@10"], abs=0.02)
        assert one["valid loss"] == pytest.approx(other["valid loss"], rel=0.01)
    assert results[0]["base_model"].keys() == results[1]["base_model"].keys()
