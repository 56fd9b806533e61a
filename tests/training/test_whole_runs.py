"""Runs of many stages with models of other forms, and runs that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.bundle import PromptTemplate, load_bundle
from training.base_model.config import MadeConfig
from training.base_model.load import load_model, save_model
from training.base_model.made import make_tokenizer, make_untrained
from training.errors import TrainingError
from training.items.dataset import Dataset
from training.pipeline import run_stages, stages_up_to
from training.recipe import load_recipe

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "training" / "recipes" / "tiny.toml"
TINY_STORIES = REPOSITORY / ".." / "shared" / "weights" / "TinyStories-656K"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
SMALL = ["items.demo.num_users=60", "finetuning.epochs=0.5", "finetuning.validation_rows=10",
         "grounding.stage_a.steps=3", "grounding.stage_a.batch_size=8", "base_model.made.steps=3",
         "base_model.held_out_tokens=200", "finetuning.batch_size=16"]  # fmt: skip


def run(runs_dir: Path, stage: str, *overrides: str) -> Path:
    recipe = load_recipe(TINY, [*SMALL, *overrides])
    for _ in run_stages(recipe, runs_dir, stages_up_to(stage)):
        pass
    return runs_dir / recipe.name


def test_an_untied_chat_model_with_padding_rows(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(["What is the name of the next item of a customer?"], 400)
    tokenizer.add_tokens(["<|turn|>", "<|stop|>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = MadeConfig(
        num_layers=1, hidden_size=32, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48,
        tie_embeddings=False, max_positions=256, context_tokens=64,
    )  # fmt: skip
    model = make_untrained(config, tokenizer, seed=0)
    num_text = len(tokenizer)
    model.resize_token_embeddings(num_text + 30, mean_resizing=False)
    save_model(model, tokenizer, tmp_path / "chat_model")
    run_dir = run(tmp_path, "finetuning", f"base_model.name={tmp_path / 'chat_model'}")
    prompt = PromptTemplate.model_validate_json((run_dir / "grounding" / "prompt.json").read_text())
    assert prompt.style == "chat"
    grounded, grounded_tokenizer = load_model(run_dir / "grounding" / "model")
    assert grounded.config.vocab_size == num_text + 96
    for name in ("get_input_embeddings", "get_output_embeddings"):
        before = getattr(model, name)().weight[:num_text]
        assert getattr(grounded, name)().weight[:num_text].equal(before), name
    finetuned, _ = load_model(run_dir / "finetuning" / "model")
    assert not finetuned.lm_head.weight.equal(grounded.lm_head.weight)
    # Learned prompts are the served ones: 1 target per row, and what stands before it.
    dataset = Dataset.load(run_dir / "items")
    codes = np.load(run_dir / "semantic_ids" / "codes.npy")
    levels = json.loads((run_dir / "grounding" / "vocabulary.json").read_text())
    tokens = codes + np.asarray([level["first_token_id"] for level in levels])
    text = grounded_tokenizer.decode(prompt.token_ids(tokens[dataset.train["history"][0].to_list()]))
    assert text.startswith("<|turn|>user\n")
    assert text.endswith("<|stop|>\n<|turn|>assistant\n")
    assert text.count("<a_") == len(dataset.train["history"][0])


@pytest.mark.skipif(not TINY_STORIES.exists(), reason="../shared/weights/TinyStories-656K is not here")
def test_a_pretrained_miniature_by_path(tmp_path: Path) -> None:
    run_dir = run(tmp_path, "finetuning", f"base_model.name={TINY_STORIES}")
    original, _ = load_model(TINY_STORIES)
    grounded, _ = load_model(run_dir / "grounding" / "model")
    for (name, before), after in zip(original.named_parameters(), grounded.parameters(), strict=True):
        assert after[: before.shape[0]].equal(before), name
    assert grounded.config.vocab_size == 2048 + 96
    finetuned, _ = load_model(run_dir / "finetuning" / "model")
    assert all(torch.isfinite(parameter).all() for parameter in finetuned.parameters())


def test_a_refit_is_what_the_bundle_holds(tmp_path: Path) -> None:
    overrides = ["refit.enabled=true", "prior.enabled=true", "prior.ridge=0.01", "evaluation.max_rows=30"]
    overrides += ["evaluation.tune_itemcf=true", "evaluation.tuning_rows=20", "finetuning.epochs=2"]
    run_dir = run(tmp_path, "export", *overrides)
    refit, _ = load_model(run_dir / "refit" / "model")
    bundle = load_bundle(run_dir / "bundle")
    served, _ = load_model(bundle.model_dir)
    chosen, _ = load_model(run_dir / "finetuning" / "model")
    weights = [model.get_input_embeddings().weight for model in (refit, served, chosen)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    assert bundle.manifest.beam_width == 50
    counted = Dataset.load(run_dir / "items").with_validation().popularity
    assert bundle.items["popularity"].sum() == counted.sum()
    assert (bundle.prior is not None) == (run_dir / "prior" / "files").is_dir()
    results = json.loads((run_dir / "evaluation" / "results.json").read_text())
    assert set(results["refit"]["baselines"]) == {"itemcf_tuned"}
    assert results["refit"]["metrics"] != results["metrics"]
    card = (bundle.path / "README.md").read_text()
    assert "refit on train and validation rows" in card
    assert "This bundle holds the refitted model" in card
    with pytest.raises(TrainingError, match=r"finetuning\.ranking\.steps = 0"):
        run(tmp_path, "refit", *overrides, "finetuning.ranking.steps=1")


def results_of(run_dir: Path) -> dict[str, Any]:
    """What must not depend on how often a run was killed."""
    results = json.loads((run_dir / "evaluation" / "results.json").read_text())
    history = json.loads((run_dir / "finetuning" / "history.json").read_text())
    weights = (run_dir / "finetuning" / "model" / "model.safetensors").read_bytes()
    return {"metrics": results["metrics"], "history": history, "weights": weights}


@pytest.mark.slow
def test_killed_at_every_stage_ends_with_the_same_numbers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "evaluation", "--config", str(TINY), "--runs-dir"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, cwd=REPOSITORY)
    killed_dir = tmp_path / "killed"
    stages = [stage.name for stage in stages_up_to("evaluation")]
    for stage in stages:
        process = subprocess.Popen(
            [*command, str(killed_dir)], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _wait_for(killed_dir / "tiny" / stage / "started.json", process)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(killed_dir)], check=True, capture_output=True, cwd=REPOSITORY)
    assert results_of(killed_dir / "tiny") == results_of(tmp_path / "whole" / "tiny")


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, f"the run ended before {path} was there"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)
