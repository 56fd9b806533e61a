"""Log lines: one JSON object each, or plain text for a terminal. No text of users is ever logged."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

# vLLM adds fields of its own to every record of the process it is imported in.
_FOREIGN = "vllm_"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """Renders time, level, logger, message and every field given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _extra(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """The same for people: `12:00:01 info  service.api  request status=200 ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of text, and a traceback below it where there is one."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={value}" for name, value in _extra(record).items())
        line = f"{moment} {record.levelname.lower():7s} {record.name}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(level: str, log_format: str) -> None:
    """Send every logger of the process, uvicorn's included, to standard error.

    Args:
        level: "debug", "info", "warning" or "error".
        log_format: "json" or "text".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    for name in ("service", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    fields = vars(record).items()
    return {name: value for name, value in fields if name not in _STANDARD and not name.startswith(_FOREIGN)}
