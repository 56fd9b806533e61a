"""Log lines are JSON, whatever is in them."""

from __future__ import annotations

import json
import logging
import sys

from service.observability.logs import JsonFormatter, TextFormatter


def a_record(**extra):
    record = logging.makeLogRecord({"name": "service.x", "levelname": "INFO", "msg": "a %s", "args": ("b",)})
    vars(record).update(extra)
    return record


def test_one_line_of_json_with_extras():
    line = JsonFormatter().format(
        a_record(
            status=200,
            stages_ms={"decode": 1.5},
            odd={
                1,
            },
            text="\n\u2028",
        )
    )
    assert "\n" not in line
    fields = json.loads(line)
    assert fields["message"] == "a b" and fields["level"] == "info" and fields["status"] == 200
    assert fields["stages_ms"] == {"decode": 1.5} and fields["time"].endswith("Z")


def test_exceptions_stay_on_the_line():
    try:
        raise ValueError("broken")
    except ValueError:
        record = a_record(exc_info=sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line and "ValueError: broken" in json.loads(line)["exception"]
    assert "ValueError: broken" in TextFormatter().format(record)


def test_text_form_shows_extras():
    assert TextFormatter().format(a_record(status=200)).endswith("service.x: a b status=200")
