"""Errors as callers see them: RFC 9457 problem documents.

Raise `Problem` anywhere below a route; the app answers it as `application/problem+json`. A detail says what the caller
can do. It never contains Azure's text, a secret or an internal URL.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from token_broker.web.ids import correlation_id

__all__ = ["Problem", "problem_response", "refuse_socket"]

# Their clients show `error.message` of an answer, and know nothing of problem documents.
_OFFICIAL_CLIENTS_PATHS = re.compile(r"/v1/|/openai/|/voice-live/|/api/v1/voice/voicelive/[^/]+/")


class Problem(Exception):  # noqa: N818  # RFC 9457's word
    """A refusal or a failure to report to the caller.

    `code` is stable, for programs. `extra` are extension members of the document (RFC 9457 §3.2).
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def document(self, correlation_id: str) -> dict[str, Any]:
        """The document's members. `type` is a URN with the code, `title` the status' reason phrase."""
        return {
            "type": f"urn:voice-token-broker:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "correlation_id": correlation_id,
            **self.extra,
        }

    def api_error(self) -> dict[str, Any]:
        """The problem in the form of OpenAI's `error` object."""
        kind = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        return {"message": self.detail, "type": kind, "code": self.code, "param": None}


def problem_response(problem: Problem, scope: Scope) -> JSONResponse:
    """The response for `problem`. On the official clients' paths it has OpenAI's `error` too, which they display."""
    headers = {"Cache-Control": "no-store", **problem.headers}
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers.setdefault("WWW-Authenticate", "Bearer")
    document = problem.document(correlation_id(scope))
    if _OFFICIAL_CLIENTS_PATHS.match(scope["path"]):
        document["error"] = problem.api_error()
    return JSONResponse(document, problem.status, headers, media_type="application/problem+json")


async def refuse_socket(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a WebSocket handshake with `problem`, or with ASGI's plain 403 where the server has no such extension."""
    await receive()  # websocket.connect
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close"})
        return
    response = problem_response(problem, scope)
    response.headers["X-Request-ID"] = correlation_id(scope)  # RequestContextMiddleware sets it on HTTP responses only
    await response(scope, receive, send)
