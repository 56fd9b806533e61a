"""The quality report as a table for people: report.md in the stage's folder."""

from __future__ import annotations

from typing import Any

_WHOLE = {
    "num_items": "items",
    "unique_before": "share of distinct SIDs, before collisions were handled",
    "unique_after": "share of distinct SIDs, after",
    "largest_bucket_before": "most items with one SID, before",
    "largest_bucket_after": "most items with one SID, after",
    "moved_items": "items moved to another SID",
    "variance_explained": "variance of the vectors explained, before",
    "variance_explained_after": "variance of the vectors explained, after",
    "cosine_after": "mean cosine of vector and reconstruction, after",
    "neighbours_share_first_code": "nearest neighbours with the same first code",
    "neighbours_by_chance": "any two items with the same first code",
    "successors_share_first_code": "items that follow each other with the same first code",
    "successors_by_chance": "the same by chance",
    "revived_codes": "dead codes revived in training",
}
_LEVEL = {
    "letter": "level",
    "codebook_size": "codes",
    "dead_codes": "dead",
    "entropy_bits": "entropy, bits",
    "evenness": "evenness",
    "largest_code": "items of the largest code",
    "distinct_prefixes": "distinct prefixes",
    "variance_explained": "variance explained",
    "neighbours_share_prefix": "neighbours with the same prefix",
    "successors_share_prefix": "followers with the same prefix",
}


def markdown(report: dict[str, Any]) -> str:
    """Two tables: the semantic IDs as a whole, and level by level."""
    lines = [f"# Semantic IDs: {report['kind']}", "", "| | |", "|---|---:|"]
    lines += [f"| {label} | {_shown(report[name])} |" for name, label in _WHOLE.items() if name in report]
    lines += ["", f"| {' | '.join(_LEVEL.values())} |", f"|{'---:|' * len(_LEVEL)}"]
    for level in report["levels"]:
        lines.append(f"| {' | '.join(_shown(level[name]) for name in _LEVEL)} |")
    lines += [
        "",
        "Evenness is entropy over its highest possible value. A prefix is all codes up to that level. "
        "The picture beside this file is semantic_ids.png.",
        "",
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)
