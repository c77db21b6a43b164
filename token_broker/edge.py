"""The edge: the first and last thing each HTTP request passes.

It gives the request its id, answers what nothing else answered for, and counts.
"""

import re

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from token_broker.ids import uuid7
from token_broker.problems import Problem, problem_response

__all__ = ["Edge"]

log = structlog.get_logger("token_broker.http")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,128}")


class Edge:
    """Sets `scope["state"]["correlation_id"]` and `X-Request-ID`, and turns what nobody caught into a problem 500.

    A caller's own `X-Request-ID` is kept where it is plain.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid7().encode()
        correlation_id = request_id.decode()
        scope.setdefault("state", {})["correlation_id"] = correlation_id
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:  # the last net: whatever it is, the caller gets an answer
            log.error(
                "request_failed",
                correlation_id=correlation_id,
                path=scope["path"],
                error=type(error).__name__,
                exc_info=error,
            )
            if started:
                raise
            problem = Problem(
                500, "internal_error", "Something failed here; quote the correlation_id when you report it."
            )
            await problem_response(problem, correlation_id)(scope, receive, send_with_id)
