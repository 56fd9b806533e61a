"""Clean the text of items: entities, tags, white space, and lists that were printed as strings."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterable

_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def clean_text(text: str) -> str:
    """Plain text on one line: HTML entities and tags resolved, white space runs made single spaces."""
    # Twice: product feeds often escape what was escaped already (&amp;quot;).
    text = html.unescape(html.unescape(text))
    return " ".join(_CONTROL.sub(" ", _TAG.sub(" ", text)).split())


def clean_description(value: object) -> str:
    """One clean text from a description that is a string, a list of strings, or a printed list.

    MiniOneRec's files hold Python lists printed as strings, some of them damaged by their own
    quotes; those are taken as text without the brackets.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        stripped = value.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            value = _printed_list(stripped)
        else:
            return clean_text(value)
    if isinstance(value, Iterable):
        return clean_text(" ".join(str(part) for part in value))
    return clean_text(str(value))


def _printed_list(text: str) -> list[str]:
    try:
        parsed = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [text[1:-1].strip().strip("'\"")]
    return [str(part) for part in parsed] if isinstance(parsed, list) else [text]
