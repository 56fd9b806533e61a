"""Around every request: its id, its times, its log line, security headers, and the body's size."""

from __future__ import annotations

import logging
import time
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.context import RequestContext, new_context
from service.api.errors import error_response
from service.draining import Drain
from service.observability import metrics
from service.observability.traces import span

# The page loads its own files and talks to its own server, nothing else.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
CLIENT_GONE = 499  # for metrics and logs only: nobody reads the answer

OUTCOMES = {
    401: "unauthorized",
    403: "unauthorized",
    404: "not_found",
    429: "overloaded",
    CLIENT_GONE: "disconnected",
    503: "unavailable",
    504: "deadline",
}
QUIET_ROUTES = ("/livez", "/readyz", "/metrics")

log = logging.getLogger("service.requests")


class RequestMiddleware:
    """Outermost layer: nothing gets past it without an id, a log line and a count.

    While the process drains, what is new is refused here; probes are answered to the end.

    Args:
        app: the application below.
        drain: what the process still takes on.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = new_context(scope["headers"])
        scope.setdefault("state", {})["context"] = context
        status = CLIENT_GONE

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = context.fields.pop("status", message["status"])
                message = {**message, "headers": [*message["headers"], *_headers(context)]}
            await send(message)

        started = time.perf_counter()
        metrics.INFLIGHT_REQUESTS.inc()
        try:
            with span("gtirec.request") as current:
                if self._drain.is_refusing and scope["path"] not in QUIET_ROUTES:
                    await _refusal(context)(scope, receive, send_with_headers)
                else:
                    with self._drain.held():
                        await self._app(scope, receive, send_with_headers)
                current.set("http.route", _route(scope))
                current.set("http.response.status_code", status)
                current.set("gtirec.request_id", context.request_id)
        except Exception:
            log.exception("a bug in the service", extra={"request_id": context.request_id})
            if status == CLIENT_GONE:
                sentence = "the service failed on this request; its log has the reason under this request_id"
                response = error_response(500, sentence, "internal_error", context.request_id)
                await response(scope, receive, send_with_headers)
        finally:
            metrics.INFLIGHT_REQUESTS.dec()
            _report(scope, context, status, time.perf_counter() - started)


def _refusal(context: RequestContext) -> JSONResponse:
    sentence = "the service is shutting down; send the request again, and another replica will answer it"
    headers = {"Retry-After": "1", "Connection": "close"}
    return error_response(503, sentence, "shutting_down", context.request_id, headers)


class BodyLimitMiddleware:
    """Refuses large bodies: by their declared length, or as soon as they turn out too long.

    Args:
        app: the application below.
        max_bytes: largest body let through.
        max_bulk_bytes: the same for paths that end in /bulk.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_bulk_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_bulk_bytes = max_bulk_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes = self._max_bulk_bytes if scope["path"].endswith("/bulk") else self._max_bytes
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > max_bytes:
            await self._refuse(max_bytes, scope, receive, send)
            return
        num_bytes, is_started = 0, False

        async def counted_receive() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                raise _BodyTooLarge
            return message

        async def watched_send(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, counted_receive, watched_send)
        except _BodyTooLarge:
            if not is_started:
                await self._refuse(max_bytes, scope, receive, send)

    async def _refuse(self, max_bytes: int, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope["state"]["context"]
        sentence = f"the body is larger than {max_bytes} bytes; send less at once"
        response = error_response(
            413, sentence, "body_too_large", context.request_id, {"Connection": "close"}
        )
        await response(scope, receive, send)


class _BodyTooLarge(BaseException):
    """Not an Exception: nothing between the body and the middleware may turn it into another answer."""


def _headers(context: RequestContext) -> list[tuple[bytes, bytes]]:
    named = {"X-Request-Id": context.request_id, **context.timings.headers(), **SECURITY_HEADERS}
    return [(name.lower().encode(), value.encode()) for name, value in named.items()]


def _route(scope: Scope) -> str:
    """The route's template, never the path: a path can hold a user's id."""
    return getattr(scope.get("route"), "path", None) or "unmatched"


def _report(scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
    route = _route(scope)
    outcome = OUTCOMES.get(status) or ("ok" if status < 400 else "invalid" if status < 500 else "error")
    variant = context.timings.variant
    metrics.REQUESTS.labels(route=route, outcome=outcome, variant=variant).inc()
    metrics.REQUEST_SECONDS.labels(route=route, variant=variant).observe(seconds)
    line: dict[str, Any] = {
        "request_id": context.request_id,
        "method": scope["method"],
        "route": route,
        "status": status,
        "outcome": outcome,
        "duration_ms": round(1000 * seconds, 2),
        **context.fields,
    }
    if variant:
        line["variant"] = variant
    if context.timings.ms:
        line["stages_ms"] = context.timings.ms
    log.log(logging.DEBUG if route in QUIET_ROUTES else logging.INFO, "request", extra=line)
