"""What people read says what was measured, and beside what."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from training.evaluation import provenance
from training.evaluation.config import EvaluationConfig, PublishedRow, SasRecConfig
from training.evaluation.evaluate import Ranking
from training.evaluation.report import markdown, terminal_table
from training.evaluation.results import compose, headline, refit_results, run_baselines, save
from training.evaluation.serving_order import ServingOrder


@pytest.fixture
def measured(world: Any, tmp_path: Path) -> tuple[dict[str, Any], Ranking, dict[str, np.ndarray]]:
    config = EvaluationConfig(
        published=(PublishedRow(name="TIGER", metrics={"HR@10": 0.1321}),),
        num_resamples=100,
        tuning_rows=20,
        sasrec=SasRecConfig(seeds=(0, 1), hidden_size=8, epochs=1, validation_rows=10),
    )
    rows = world.dataset.test
    order = ServingOrder.build(world.dataset, world.codes, world.levels)
    lists = np.tile(order.item_of_row[:20], (rows.height, 1))
    targets = rows["target"].to_numpy()
    ranks = np.where((lists == targets[:, None]).any(1), (lists == targets[:, None]).argmax(1) + 1, 0)
    ranking = Ranking(lists, ranks, np.where(ranks > 2, ranks - 1, ranks))
    baselines = run_baselines(world.dataset, rows, config, directory=tmp_path / "baselines")
    others = baselines.ranks
    results = compose(world.dataset, rows, order, ranking, others, config=config, seed=0)
    results |= {**baselines.about, "recipe": "r", "seed": 0, "base_model": "made"}
    results |= {"parameters": 1234, "hardware": "a chip, 2 cores", "minutes": 3.2, "commit": "abc"}
    return results, ranking, others


def test_every_baseline_and_published_row_stands_beside_the_model(measured: Any) -> None:
    results, _, _ = measured
    text = markdown(results)
    table = text.split("\n\n")[1]
    names = [line.split("|")[1].strip() for line in table.splitlines()][2:]
    assert names == [
        "popularity",
        "ItemCF",
        "ItemCF, tuned",
        "SASRec, full softmax",
        "TIGER (as published)",
        "r, SID level",
        "r (this model)",
    ]
    assert ".1321" in text
    assert "95 % interval" in text
    assert "abc" in text
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal_table(results))
    assert "HR@10" in console.export_text()


def test_the_sid_level_is_left_out_where_it_says_nothing_new(measured: Any) -> None:
    results = dict(measured[0])
    results["sid_level"] = results["metrics"]
    assert "SID level |" not in markdown(results)


def test_what_a_refit_made_of_it_stands_beside_it_labelled(measured: Any) -> None:
    results, ranking, others = measured
    config = EvaluationConfig(num_resamples=100)
    better = replace(ranking, ranks=np.ones_like(ranking.ranks), ranks_alone=ranking.ranks)
    refit = refit_results(better, ranking, {"sasrec": others["sasrec"]}, config=config, seed=0)
    assert refit["metrics"]["HR@1"] == 1
    assert refit["gain_of_the_refit"]["HR@10"][0] > 0
    assert refit["model_alone"]["metrics"] == results["metrics"]
    assert refit["model_alone"]["gain_of_the_prior"] == refit["gain_of_the_refit"]
    text = markdown(results | {"refit": refit, "model_alone": refit["model_alone"]})
    names = [line.split("|")[1].strip() for line in text.split("\n\n")[1].splitlines()][2:]
    assert names[4] == "SASRec, full softmax, refit"
    assert names[-1] == "r, refit on train and validation rows"
    assert "r, model alone, no item prior" in names
    assert "minus SASRec, full softmax, refit" in text


def test_results_have_the_agreed_form(measured: Any) -> None:
    results = measured[0]
    for key in ("dataset", "test_rows", "metrics", "sid_level", "baselines", "recipe", "base_model"):
        assert key in results
    for key in ("parameters", "hardware", "minutes", "commit"):
        assert key in results
    wanted = {f"{name}@{k}" for name in ("HR", "NDCG") for k in (1, 3, 5, 10, 20, 50)}
    for metrics in (results["metrics"], results["sid_level"], *results["baselines"].values()):
        assert wanted < set(metrics)
    assert set(results["baselines"]) == {"popularity", "itemcf", "itemcf_tuned", "sasrec"}
    assert json.loads(json.dumps(results)) == results


def test_every_seed_of_sasrec_is_told(measured: Any) -> None:
    results = measured[0]
    assert [one["seed"] for one in results["sasrec"]["seeds"]] == [0, 1]
    assert results["sasrec"]["seeds"][0]["metrics"] == results["baselines"]["sasrec"]
    assert "hidden_size 8" in markdown(results)


def test_slices_are_told_with_intervals_and_baselines(measured: Any, world: Any) -> None:
    results = measured[0]
    slices = results["slices"]
    assert sum(part["rows"] for part in slices.values()) == results["test_rows"]
    whole = sum(part["rows"] * part["metrics"]["HR@10"] for part in slices.values())
    assert whole / results["test_rows"] == pytest.approx(results["metrics"]["HR@10"], abs=1e-5)
    for part in slices.values():
        low, high = part["intervals"]["HR@10"]
        assert low <= part["metrics"]["HR@10"] <= high
        assert set(part["baselines"]) == set(part["differences"]) == set(results["baselines"])
    assert "| tail |" in markdown(results)


def test_rows_are_kept_for_paired_comparisons(measured: Any, world: Any, tmp_path: Path) -> None:
    results, ranking, others = measured
    save(tmp_path, results, world.dataset.test, ranking, others)
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    assert rows["rank"].to_list() == ranking.ranks.tolist()
    assert {"user_id", "target", "sid_rank", "recommended", "itemcf_rank"} < set(rows.columns)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert headline(results)["HR@10 of itemcf"] == round(results["baselines"]["itemcf"]["HR@10"], 4)


def test_beams_must_reach_the_largest_cutoff() -> None:
    with pytest.raises(ValueError, match="below the largest cutoff 50"):
        EvaluationConfig(beam_width=20)


def test_the_machine_is_described() -> None:
    assert "core" in provenance.hardware()
    assert {"python", "torch", "polars"} <= set(provenance.versions())
    commit = provenance.commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
