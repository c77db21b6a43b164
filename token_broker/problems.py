"""Errors as callers see them: RFC 9457 problem documents.

Raise `Problem` anywhere beneath a route; the app answers it as `application/problem+json`. A detail says what the
caller can do, and never carries Azure's text, a secret or an internal URL.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

__all__ = ["Problem", "problem_response", "with_api_error", "worded_for"]

_OFFICIAL_CLIENTS_PATHS = ("/v1/", "/openai/", "/voice-live/")


class Problem(Exception):  # noqa: N818  # RFC 9457's word
    """A refusal or a failure that a caller is told of.

    `code` is stable, for programs; `extra` are further members of the document (RFC 9457 §3.2).
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
        """The document's members; `type` is a URN made of the code, `title` the status' own phrase."""
        return {
            "type": f"urn:voice-token-broker:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "correlation_id": correlation_id,
            **self.extra,
        }


def with_api_error(problem: Problem) -> Problem:
    """The same with OpenAI's `error` beside it: what the official clients read of a refusal."""
    kind = "server_error" if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    error = {"message": problem.detail, "type": kind, "code": problem.code, "param": None}
    return Problem(
        problem.status, problem.code, problem.detail, headers=problem.headers, extra={**problem.extra, "error": error}
    )


def worded_for(problem: Problem, path: str) -> Problem:
    """The problem as whoever asks at `path` reads it."""
    return with_api_error(problem) if path.startswith(_OFFICIAL_CLIENTS_PATHS) else problem


def problem_response(problem: Problem, correlation_id: str) -> JSONResponse:
    """The answer that tells of `problem`."""
    headers = {"Cache-Control": "no-store", **problem.headers}
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers.setdefault("WWW-Authenticate", "Bearer")
    return JSONResponse(
        problem.document(correlation_id), problem.status, headers, media_type="application/problem+json"
    )
