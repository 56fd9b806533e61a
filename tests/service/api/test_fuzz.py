"""Requests made up from the OpenAPI document: no 500, and only answers that the document describes."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from service.api.models import BatchLine

# Per operation. `make test-long` runs the second too, over 10,000 requests in all.
LENGTHS = [
    pytest.param(60, id="short"),
    pytest.param(500, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
]


@pytest.mark.parametrize("num_examples", LENGTHS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_every_answer_is_described(serve_app, mode, num_examples):
    num_requests = 0
    with serve_app() as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        assert {"POST /recommend", "DELETE /users/{user_id}"} <= {one.label for one in operations}
        for operation in operations:
            if operation.path.endswith("/bulk"):
                continue  # lines, which a schema cannot describe; fuzzed below
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
                continue  # nothing to get wrong

            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            @hypothesis.settings(
                max_examples=num_examples,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.explicit, Phase.generate],
            )
            def check(case):
                nonlocal num_requests
                num_requests += 1
                if mode is GenerationMode.POSITIVE:
                    _all_dated_or_none(case.body)
                response = case.call(timeout=20)
                if case.path == "/recommend/batch" and response.status_code == 200:
                    _has_only_lines_of_a_batch(response.text, has_failed=mode is GenerationMode.NEGATIVE)
                else:
                    case.validate_response(response)

            check()
    print(f"{num_requests} requests")
    assert num_requests > 8 * num_examples


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    """hypothesis parses source to describe its strategies, and a collection in the midst of that makes
    CPython 3.11 raise "AST constructor recursion depth mismatch"."""
    gc.disable()
    yield
    gc.enable()


def _has_only_lines_of_a_batch(text: str, *, has_failed: bool) -> None:
    """A request of a batch fails on its own line: the batch itself is answered 200."""
    lines = [BatchLine.model_validate_json(line) for line in text.removesuffix("\n").split("\n")]
    assert sorted(line.index for line in lines) == list(range(len(lines)))
    assert all(line.response or (line.error and line.status in (422, 429)) for line in lines)
    assert not has_failed or any(line.error for line in lines)


def _all_dated_or_none(body) -> None:
    """The one rule that a schema cannot say."""
    history = body.get("history") if isinstance(body, dict) else None
    for event in history if isinstance(history, list) else ():
        if isinstance(event, dict):
            event.pop("timestamp", None)


LINE = st.one_of(
    st.binary(max_size=60),
    st.fixed_dictionaries(
        {
            "user_id": st.text(max_size=5),
            "item_id": st.text(max_size=5),
            "type": st.sampled_from(["view", "x"]),
        },
        optional={
            "event_id": st.text(max_size=3),
            "timestamp": st.one_of(st.floats(), st.integers(), st.text()),
        },
    ).map(lambda fields: json.dumps(fields).encode()),
)


@pytest.mark.parametrize("num_examples", LENGTHS)
def test_no_lines_make_a_500(serve_app, num_examples):
    with serve_app() as url, httpx.Client(base_url=url) as client:

        @hypothesis.given(st.lists(LINE, max_size=6))
        @hypothesis.settings(max_examples=num_examples, database=None, derandomize=True)
        def check(lines):
            response = client.post("/events/bulk", content=b"\n".join(lines))
            assert response.status_code in (200, 422), response.text
            if response.status_code == 200:
                answer = response.json()
                counted = sum(answer[name] for name in ("recorded", "duplicates", "expired", "rejected"))
                assert counted == sum(1 for line in b"\n".join(lines).split(b"\n") if line.strip())

        check()
