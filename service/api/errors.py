"""Errors over HTTP: one body, one table of statuses, and sentences instead of validator output."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service.api.context import request_context
from service.api.models import ErrorBody
from service.errors import GtirecError, TryLater, Unauthorized

MAX_PROBLEMS = 3
MAX_SHOWN = 60  # characters of the caller's own value repeated in a sentence

MEANINGS = {
    401: "No API key was sent.",
    403: "The API key is not valid, or lacks a scope.",
    404: "There is no such item or path.",
    409: "What is there now forbids it: somebody else changed it first, it is running already, or every "
    "semantic ID has an item.",
    413: "The request body is too large.",
    422: "The request is malformed or asks for something impossible.",
    429: "Too much work is in flight, or this key sends too much; come back after `Retry-After` seconds.",
    500: "A bug in the service.",
    503: "The service is not ready, or something it depends on is away.",
    504: "The answer was not ready within the deadline.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: the statuses that it can answer besides success.

    Where a key is asked for (401), a key's rate is limited too (429), and keys live in Redis (503).
    """
    if 401 in statuses:
        statuses = tuple(sorted({*statuses, 429, 503}))
    return {status: {"model": ErrorBody, "description": MEANINGS[status]} for status in statuses}


def error_response(
    status: int, error: str, error_type: str, request_id: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error in the one form that all have."""
    safe = error.encode("utf-8", "replace").decode()  # lone surrogates cannot be sent
    body = {"error": safe, "error_type": error_type, "request_id": request_id}
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def described(error: Exception) -> tuple[int, str, str]:
    """Status, sentence and type of an error raised while answering one request of several."""
    if isinstance(error, GtirecError):
        return error.status, str(error), _snake(type(error).__name__)
    return 500, "the service failed on this request; its log has the reason", "internal_error"


def install(app: FastAPI) -> None:
    """Register the handlers."""

    @app.exception_handler(GtirecError)
    async def deliberate(request: Request, error: GtirecError) -> JSONResponse:
        headers = {}
        if isinstance(error, TryLater):
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        return _answer(request, *described(error), headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(request, 422, sentence_of(error.errors()), "validation_error")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        # FastAPI says 400 where a body cannot even be decoded; to the caller that is a bad request body.
        status = 422 if error.status_code == 400 else error.status_code
        detail = error.detail if error.detail != HTTPStatus(error.status_code).phrase else ""
        kind = HTTPStatus(status).phrase if status != 422 else "validation_error"
        sentence = detail or f"{request.method} is not answered here: {kind.lower()}; see /docs"
        return _answer(request, status, sentence, _snake(kind.replace(" ", "")), error.headers)


def _answer(
    request: Request, status: int, error: str, error_type: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    context = request_context(request.scope)
    context.fields["error_type"] = error_type
    return error_response(status, error, error_type, context.request_id, headers)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def sentence_of(problems: list[dict[str, Any]] | Any) -> str:
    """Validator output as text for a person; at most `MAX_PROBLEMS` of them.

    Args:
        problems: pydantic's list of errors, locations starting with "body", "query" or "path".
    """
    sentences = [_problem(problem) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        sentences.append(f"and {len(problems) - MAX_PROBLEMS} more problems")
    return "; ".join(sentences)


def _problem(problem: Mapping[str, Any]) -> str:
    kind, location, context = problem["type"], problem["loc"], problem.get("ctx") or {}
    where, given = _where(location), _shown(problem.get("input"))
    if kind == "json_invalid":
        return f"the body is not valid JSON: {context.get('error', 'it cannot be parsed')}"
    if kind == "missing" and location == ("body",):
        return "the body is missing; send a JSON object with Content-Type: application/json"
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        return f"{where} is not a field of this request; see /docs"
    if kind.startswith(("model_attributes", "dict_type", "model_type")):
        return f"{where} must be a JSON object, got {given}"
    if kind in _RULES:
        return f"{where} must {_RULES[kind].format(**context)}, got {given}"
    return f"{where} is not accepted ({problem['msg'].removeprefix('Value error, ')}), got {given}"


_RULES = {
    "greater_than_equal": "be at least {ge}",
    "less_than_equal": "be at most {le}",
    "int_type": "be a whole number",
    "int_parsing": "be a whole number",
    "int_from_float": "be a whole number",
    "bool_type": "be true or false",
    "string_type": "be a string",
    "string_unicode": "be valid Unicode text",
    "string_too_short": "have at least {min_length} character(s)",
    "string_too_long": "have at most {max_length} characters",
    "string_pattern_mismatch": "match {pattern}",
    "list_type": "be a list",
    "timezone_aware": "have a time zone, like 2026-01-31T12:00:00Z",
}


def _where(location: tuple[int | str, ...]) -> str:
    parts = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return f"'{path.lstrip('.')}'" if path else "the body"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
