"""The outermost middleware: request ids, a last error handler, and an event for each response."""

import re
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from token_broker.observability.events import Observer, RequestAnswered, TraceContext
from token_broker.observability.logging import begin_ids
from token_broker.web.requests import Problem, problem_response, uuid7

__all__ = ["RequestContextMiddleware"]

log = structlog.get_logger("token_broker.web.requests")

# Anything else could forge lines of a log, or headers of the response.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context §3.2
_HEADERS = frozenset({b"x-request-id", b"traceparent", b"tracestate"})
_MAX_TRACESTATE_BYTES = 512  # what W3C Trace Context §3.3.1.5 asks to propagate at least
_CLIENT_LEFT = 499  # nginx's code for a client that closed before the response


class RequestContextMiddleware:
    """Sets `scope["state"]["correlation_id"]` and `X-Request-ID`, and answers an uncaught exception with a problem 500.

    A valid `X-Request-ID` of the caller is kept. A `traceparent` becomes `scope["state"]["trace"]`.
    """

    def __init__(self, app: ASGIApp, observe: Observer) -> None:
        self.app = app
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        began_s = time.monotonic()
        request_id, correlation_id = _identify(scope)
        if scope["type"] == "websocket":  # it has no single answer to report: the relay reports its talks
            await self.app(scope, receive, send)
            return
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            log.error(
                "request_failed",
                correlation_id=correlation_id,
                path=scope["path"],
                error=type(error).__name__,
                exc_info=error,
            )
            if status:  # the response has begun: uvicorn closes the connection, so that nobody takes it for complete
                raise
            problem = Problem(
                500, "internal_error", "Something failed here; quote the correlation_id when you report it."
            )
            await problem_response(problem, scope)(scope, receive, send_with_id)
        finally:
            # The route's template, not the path: the values of a metric's label have to be few.
            route = scope.get("route")
            template = "unmatched" if route is None else route.path or "/"
            self.observe(RequestAnswered(scope["method"], template, status or _CLIENT_LEFT, time.monotonic() - began_s))


def _identify(scope: Scope) -> tuple[bytes, str]:
    """The request's id, as header and as text. Stores it and the caller's trace in the scope and for log lines."""
    found = {name: value for name, value in scope["headers"] if name in _HEADERS}
    request_id = found.get(b"x-request-id", b"")
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = uuid7().encode()
    correlation_id = request_id.decode()
    state = scope.setdefault("state", {})
    state["correlation_id"] = correlation_id
    ids = {"correlation_id": correlation_id}
    if (parent := found.get(b"traceparent")) is not None and (match := _TRACEPARENT.fullmatch(parent)) is not None:
        tracestate = found.get(b"tracestate", b"")[:_MAX_TRACESTATE_BYTES].decode("latin-1")
        state["trace"] = TraceContext(parent.decode(), tracestate)
        ids["trace_id"] = match[1].decode()
    begin_ids(**ids)
    return request_id, correlation_id
