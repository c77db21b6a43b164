"""`GET /openapi.json`, and the page `/docs` for people: Swagger UI, from the broker itself, under a strict policy."""

import functools
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from token_broker import __version__, web
from token_broker.web.openapi_document import Operation, Parameter, ResponseSpec, SocketSpec, api_document
from token_broker.web.requests import MAX_JSON_VALUES

__all__ = ["openapi_routes"]

_DESCRIPTION = (
    "Plans that a browser can always use, for talking to Azure's GPT Realtime and Voice Live.\n\n"
    "Errors are problem documents (RFC 9457) with a stable `code`. Every answer has `X-Request-ID`, which is a "
    "problem's `correlation_id`. GET routes answer HEAD as well. A path that does not exist, or has an encoded slash, "
    "backslash, dot or NUL, answers 404 `not_found`, a method that a path does not take 405 `method_not_allowed` with "
    "`Allow`. A host name that is not the broker's answers 421 `host_not_served`, over WebSockets too. A head that is "
    "no HTTP/1.1, or has two Host headers, answers 400 `malformed_request`, one that takes too long 408 "
    "`head_timeout`, one that is too large 431 `head_too_large`; a WebSocket handshake that is none, 400 "
    f"`malformed_handshake`. JSON with more than {MAX_JSON_VALUES} keys and values is 422 `invalid_request`. "
    "Times are UTC."
)
_PAGE = Path(web.__file__).with_name("swagger_ui")
_HEADERS = {
    "Cache-Control": "no-cache",
    # Swagger UI's style sheet has its icons as data: images; it needs neither inline code nor eval.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Not left to the machine's own table, where `.js` may be text/plain, which browsers refuse.
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}

_OPERATIONS = (
    Operation(
        name="get_openapi",
        method="get",
        path="/openapi.json",
        tag="This document",
        summary="What you read, for machines",
        description="OpenAPI 3.1.",
        answers=(ResponseSpec(200, "The document.", media_type="application/json", json_schema={"type": "object"}),),
    ),
    Operation(
        name="get_docs",
        method="get",
        path="/docs",
        tag="This document",
        summary="What you read, for people",
        description="Swagger UI, served by the broker itself.",
        answers=(ResponseSpec(200, "The page.", media_type="text/html"), ResponseSpec(304, "As you have it.")),
    ),
    Operation(
        name="get_docs_file",
        method="get",
        path="/docs/{file}",
        tag="This document",
        summary="The page's scripts and looks",
        description="JavaScript and CSS.",
        parameters=(Parameter("file", "path", "For example `swagger-ui.css`."),),
        answers=(
            ResponseSpec(200, "The style sheet.", media_type="text/css"),
            ResponseSpec(304, "As you have it."),
        ),
        problems={404: ("not_found",)},
    ),
)


def openapi_routes(operations: Sequence[Operation], sockets: Sequence[SocketSpec] = ()) -> list[BaseRoute]:
    """The routes that show `operations` and `sockets`, and themselves. The document is made at the first request."""

    @functools.cache
    def document() -> bytes:
        described: dict[str, Any] = api_document(
            [*operations, *_OPERATIONS],
            sockets=sockets,
            version=__version__,
            # OpenAPI has no place for WebSockets, and Swagger UI shows no path without operations.
            description="\n".join(
                (_DESCRIPTION, "", "WebSockets:", "", *(f"- `{each.path}`: {each.summary}" for each in sockets))
            ),
        )
        return to_json(described, indent=1)

    async def openapi(request: Request) -> Response:
        del request
        return Response(document(), headers={**_HEADERS, "Content-Type": "application/json"})

    page = _PageFiles(directory=_PAGE)

    async def docs(request: Request) -> Response:
        return await page.get_response("index.html", request.scope)

    return [
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
        Mount("/docs", GZipMiddleware(page)),
    ]


class _PageFiles(StaticFiles):
    """Swagger UI's page, scripts and style sheet; not the licences and notes beside them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        media_type = _MEDIA_TYPES.get(PurePosixPath(path).suffix)
        if media_type is None:
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        if response.status_code == HTTPStatus.OK:  # a 304 has no body to describe
            response.headers["Content-Type"] = media_type
        return response
