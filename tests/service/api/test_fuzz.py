"""Requests made up from the OpenAPI document: no 500, and only answers that the document describes."""

from __future__ import annotations

import os

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.generation import GenerationMode

# `make test-long` asks for more; the default keeps the whole file at a few seconds.
NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_every_answer_is_described(serve_app, mode):
    with serve_app() as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) == 7
        for operation in operations:
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
                continue  # nothing to get wrong

            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            @hypothesis.settings(
                max_examples=NUM_EXAMPLES,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.explicit, Phase.generate],
            )
            def check(case):
                if mode is GenerationMode.POSITIVE:
                    _all_dated_or_none(case.body)
                case.call_and_validate(timeout=20)

            check()


def _all_dated_or_none(body) -> None:
    """The one rule that a schema cannot say."""
    history = body.get("history") if isinstance(body, dict) else None
    for event in history if isinstance(history, list) else ():
        if isinstance(event, dict):
            event.pop("timestamp", None)
