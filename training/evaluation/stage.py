"""Stage `evaluation`: measure the chosen model on the test rows, beside baselines on the same rows.

    python -m training evaluation --config training/recipes/demo.toml

Reads dataset, SIDs, prompt, fine-tuned model and item prior, and the refitted ones. Writes results.json,
report.md and rows.parquet (what every test row got, for paired comparisons). This stage alone reads test
rows.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from service.bundle.context_reader import ContextReader
from service.bundle.item_prior import ItemPrior
from service.bundle.manifest import Level
from service.bundle.prompt import PromptTemplate
from service.engine.torch_engine import TorchDecoder
from training.base_model.load import load_model, num_parameters, pick_device
from training.evaluation import provenance
from training.evaluation.baselines import spread
from training.evaluation.context_effect import measure_context
from training.evaluation.errors import EvaluationError
from training.evaluation.evaluate import RowDecoder
from training.evaluation.report import terminal_table
from training.evaluation.results import (
    compose,
    headline,
    refit_baselines,
    refit_results,
    run_baselines,
    save,
)
from training.evaluation.serving_order import ServingOrder
from training.items.dataset import Dataset

if TYPE_CHECKING:
    from training.pipeline import StageContext

PRIOR_FILES = "files"  # in the folder of the stage `prior`


def run(context: StageContext) -> dict[str, Any]:
    """Evaluate once and return the headline figures."""
    began = time.perf_counter()
    config, seed = context.recipe.evaluation, context.recipe.seed
    dataset = Dataset.load(context.of("items"), with_test=True)
    rows = spread(dataset.test, config.max_rows)
    chosen, prior, parameters = _open(context, dataset, "finetuning")
    ranking = chosen.rank(rows, label="test rows", prior=prior)
    context_effect = None
    if chosen.prompt.context is not None:
        reader = ContextReader.open(context.of("finetuning") / "model", chosen.levels)
        context_effect = measure_context(chosen, dataset, rows, reader=reader, config=config)
    baselines = run_baselines(dataset, rows, config, directory=context.dir)
    refit = refit_figures = None
    if has_refit(context.of("refit")):
        more = dataset.with_validation()
        refitted, prior, _ = _open(context, more, "refit")
        refit = refitted.rank(rows, label="test rows, refit", prior=prior)
        others = refit_baselines(more, rows, baselines.about, config, directory=context.dir)
        refit_figures = refit_results(refit, ranking, others, config=config, seed=seed)
    results = compose(dataset, rows, chosen.order, ranking, baselines.ranks, config=config, seed=seed) | {
        **baselines.about,
        **({"refit": refit_figures} if refit_figures else {}),
        **({"context": context_effect} if context_effect else {}),
        "recipe": context.recipe.name,
        "seed": seed,
        "base_model": context.recipe.base_model.name,
        "parameters": parameters,
        "prior": json.loads((context.of("prior") / "report.json").read_text(encoding="utf-8")),
        "hardware": provenance.hardware(),
        "minutes": round(minutes_so_far(context.run_dir) + (time.perf_counter() - began) / 60, 2),
        "commit": provenance.commit(),
    }
    save(context.dir, results, rows, ranking, baselines.ranks, refit)
    for folder in context.dir.glob("sasrec_*"):
        shutil.rmtree(folder)
    Console().print(terminal_table(results))
    return headline(results)


def _open(context: StageContext, dataset: Dataset, stage: str) -> tuple[RowDecoder, ItemPrior | None, int]:
    """The model of `finetuning`, the prior of `prior`, or what `refit` made of both; and its parameters.

    Args:
        context: of this stage.
        dataset: what the model learned from; its popularity breaks ties.
        stage: which of the two.
    """
    config = context.recipe.evaluation
    codes = np.load(context.of("semantic_ids") / "codes.npy", allow_pickle=False)
    levels, prompt = read_vocabulary(context.of("grounding"))
    order = ServingOrder.build(dataset, codes, levels)
    model, _ = load_model(str(context.of(stage) / "model"))
    decoder = RowDecoder(
        decoder=TorchDecoder(model.to(pick_device()).eval(), order.trie, levels),
        order=order,
        levels=levels,
        prompt=prompt,
        beam_width=config.beam_width,
        max_beam_rows=config.max_beam_rows,
    )
    prior = read_prior(context.of("prior" if stage == "finetuning" else stage), dataset.num_items)
    return decoder, prior, num_parameters(model)


def read_vocabulary(grounding: Path) -> tuple[tuple[Level, ...], PromptTemplate]:
    """Token ranges of the levels and the prompt template, as the grounding stage wrote them."""
    try:
        levels = TypeAdapter(tuple[Level, ...]).validate_json((grounding / "vocabulary.json").read_bytes())
        prompt = PromptTemplate.model_validate_json((grounding / "prompt.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise EvaluationError(f"{grounding} is damaged ({error}); run the stage grounding again") from error
    return levels, prompt


def read_prior(directory: Path, num_items: int) -> ItemPrior | None:
    """The item prior that the stage `prior` wrote to its folder, if it kept one."""
    files = directory / PRIOR_FILES
    return ItemPrior.load(files, num_items) if files.is_dir() else None


def has_refit(directory: Path) -> bool:
    """True if the stage `refit`, whose folder this is, trained the model that serves."""
    return (directory / "model").is_dir()


def minutes_so_far(run_dir: Path) -> float:
    """Minutes of the stages before this one, as the pipeline wrote them down."""
    total = 0.0
    for file in run_dir.glob("*/done.json"):
        if file.parent.name != "export":  # comes after, so it is of an earlier run
            total += float(json.loads(file.read_text(encoding="utf-8")).get("minutes", 0.0))
    return total
