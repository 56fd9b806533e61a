"""Show results: a table on the terminal, report.md for people, results.json for machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from training.evaluation.config import CUTOFFS

_COLUMNS = (*(f"HR@{cutoff}" for cutoff in CUTOFFS), *(f"NDCG@{cutoff}" for cutoff in CUTOFFS[1:]))
_SHORT_COLUMNS = ("HR@1", "HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10")
_NAMES: dict[str, str] = {
    "popularity": "popularity",
    "itemcf": "ItemCF",
    "itemcf_tuned": "ItemCF, tuned",
    "sasrec": "SASRec, full softmax",
}
_HEADLINES = ("HR@10", "NDCG@10")


def table_rows(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """Every row of the table: name and metrics, the measured model and what a refit made of it last."""
    rows: list[tuple[str, Mapping[str, float]]] = []
    rows += [(str(_NAMES.get(name, name)), metrics) for name, metrics in results["baselines"].items()]
    refit = results.get("refit")
    if refit:
        rows += [
            (f"{_NAMES.get(name, name)}, refit", metrics) for name, metrics in refit["baselines"].items()
        ]
    rows += [(f"{row['name']} (as published)", row["metrics"]) for row in results.get("published", ())]
    if results.get("model_alone"):
        rows.append((f"{results['recipe']}, model alone, no item prior", results["model_alone"]["metrics"]))
    if results["sid_level"] != {name: results["metrics"][name] for name in results["sid_level"]}:
        rows.append((f"{results['recipe']}, SID level", results["sid_level"]))
    rows.append((f"{results['recipe']} (this model)", results["metrics"]))
    if refit:
        rows.append((f"{results['recipe']}, refit on train and validation rows", refit["metrics"]))
    return rows


def terminal_table(results: Mapping[str, Any]) -> Table:
    """The main columns, for the terminal."""
    title = f"{results['dataset']}: {results['test_rows']:,} test rows, beam {results['beam_width']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in _SHORT_COLUMNS:
        table.add_column(column, justify="right")
    for name, metrics in table_rows(results):
        style = "bold" if metrics is results["metrics"] else ""
        table.add_row(name, *_cells(metrics, _SHORT_COLUMNS), style=style)
    return table


def markdown(results: Mapping[str, Any]) -> str:
    """report.md: the whole table, intervals, and how it was measured."""
    lines = [
        f"# {results['dataset']}: {results['recipe']} on {results['test_rows']:,} test rows",
        "",
        *metrics_table(results),
        "",
        *interval_lines(results),
        "",
        *slice_lines(results),
        "",
        *context_lines(results),
        "",
        *_how_lines(results),
        "",
    ]
    return "\n".join(lines)


def metrics_table(results: Mapping[str, Any]) -> list[str]:
    """The table as lines of Markdown."""
    return _markdown_table(["", *_COLUMNS], ([name, *_cells(m, _COLUMNS)] for name, m in table_rows(results)))


def interval_lines(results: Mapping[str, Any]) -> list[str]:
    """Headline figures with their 95 % intervals, and the differences to every baseline, as Markdown."""
    lines = []
    for name in _HEADLINES:
        low, high = results["intervals"][name]
        lines.append(f"- {name} {results['metrics'][name]:.4f}, 95 % interval {low:.4f} to {high:.4f}")
        for baseline, differences in results["differences"].items():
            low, high = differences[name]
            shown = f"{low:+.4f} to {high:+.4f} ({_verdict(low, high)})"
            lines.append(f"  - minus {_NAMES.get(baseline, baseline)}: {shown}")
    return lines + refit_lines(results)


def refit_lines(results: Mapping[str, Any]) -> list[str]:
    """The same of the refitted model, against what was refitted too; nothing where there is none."""
    refit = results.get("refit")
    if not refit:
        return []
    lines = ["- refit: validation rows are training rows too, for the baselines of these lines as well"]
    for name in _HEADLINES:
        low, high = refit["intervals"][name]
        lines.append(f"  - {name} {refit['metrics'][name]:.4f}, 95 % interval {low:.4f} to {high:.4f}")
        compared = {"the model before": refit["gain_of_the_refit"]}
        compared |= {f"{_NAMES.get(k, k)}, refit": found for k, found in refit["differences"].items()}
        for other, differences in compared.items():
            low, high = differences[name]
            lines.append(f"    - minus {other}: {low:+.4f} to {high:+.4f} ({_verdict(low, high)})")
    return lines


def _verdict(low: float, high: float) -> str:
    return "no difference shown" if low <= 0 <= high else "better" if low > 0 else "worse"


def slice_lines(results: Mapping[str, Any]) -> list[str]:
    """The slices as a table: the model's headline figures with intervals, and the baselines' figures."""
    slices = results.get("slices")
    if not slices:
        return []
    baselines = [_NAMES.get(name, name) for name in results["baselines"]]
    header = ["slice", "rows", *(f"{name}, 95 %" for name in _HEADLINES)]
    header += [f"HR@10 of {name}" for name in baselines]
    rows = []
    for name, part in slices.items():
        figures = [
            f"{part['metrics'][metric]:.4f} ({part['intervals'][metric][0]:.4f} to "
            f"{part['intervals'][metric][1]:.4f})"
            for metric in _HEADLINES
        ]
        others = [f"{metrics['HR@10']:.4f}" for metrics in part["baselines"].values()]
        rows.append([name, f"{part['rows']:,}", *figures, *others])
    about = (
        "Slices by target: head = the most popular fifth of the items in training, tail = the others that "
        "occur in training, cold = targets in no training target or history."
    )
    return [about, "", *_markdown_table(header, rows)]


def context_lines(results: Mapping[str, Any]) -> list[str]:
    """What a free text before the history does, as Markdown; nothing where none was trained."""
    effect = results.get("context")
    if not effect:
        return []
    rows = [
        [name, *(f"{effect[name][metric]:.4f}" for metric in _HEADLINES), f"{effect[name]['mean_rank']:.1f}"]
        for name in ("none", "right", "wrong")
    ]
    low, high = effect["right_minus_none"]["HR@10"]
    about = (
        f"Free text before the history, {effect['rows']:,} test rows: none, words of the target (right), "
        f"words of another row's target (wrong). A missed target counts as rank {effect['missed_rank']}. "
        f"HR@10, right minus none: {low:+.4f} to {high:+.4f} (95 %)."
    )
    return [about, "", *_markdown_table(["text", *_HEADLINES, "mean rank"], rows)]


def _how_lines(results: Mapping[str, Any]) -> list[str]:
    about = results["catalogue"]
    minutes = results.get("minutes")
    return [
        f"One target per row, {results['num_items']:,} items ranked, items of the history may come again. "
        f"Beam width {results['beam_width']} under the trie that serves; every result was checked to be an "
        "item. Items that share a SID are ranked by popularity, then item_id; the SID level counts a hit on "
        "any of them.",
        "",
        *_itemcf_lines(results),
        *_sasrec_lines(results),
        f"- targets with a shared SID: {about['targets_with_shared_sid']:.2%}",
        f"- coverage@10 {about['coverage@10']:.3f}, places of the top 10 taken by the most popular 1 % of "
        f"items {about['popularity_share@10']:.3f}",
        f"- base model {results['base_model']}, {results['parameters']:,} parameters",
        f"- {results['hardware']}" + (f", {minutes:.1f} minutes for the whole run" if minutes else ""),
        f"- commit {results['commit'] or 'unknown'}",
    ]


def _itemcf_lines(results: Mapping[str, Any]) -> list[str]:
    settings = results.get("itemcf_tuned_settings")
    if not settings:
        return []
    shown = ", ".join(f"{name} {value}" for name, value in settings.items())
    return [f"- ItemCF, tuned: the best NDCG@10 on validation rows had {shown}"]


def _sasrec_lines(results: Mapping[str, Any]) -> list[str]:
    sasrec = results.get("sasrec")
    if not sasrec:
        return []
    seeds = ", ".join(
        f"{one['seed']}: {one['metrics']['HR@10']:.4f} / {one['metrics']['NDCG@10']:.4f}"
        for one in sasrec["seeds"]
    )
    shown = {name: value for name, value in sasrec["settings"].items() if name != "seeds"}
    settings = ", ".join(f"{name} {value}" for name, value in shown.items())
    return [f"- SASRec, HR@10 / NDCG@10 by seed: {seeds}; {settings}"]


def _cells(metrics: Mapping[str, float], columns: Iterable[str]) -> list[str]:
    return [f"{metrics[name]:.4f}".removeprefix("0") if name in metrics else "-" for name in columns]


def _markdown_table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
