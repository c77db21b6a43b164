"""`GET /openapi.json`, and the page `/docs` for people: static, without script, and without anybody else's server."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from token_broker import __version__
from token_broker.web import openapi_page
from token_broker.web.openapi_document import Operation, ResponseSpec, SocketSpec, api_document
from token_broker.web.openapi_page import render_page
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
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
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
        description="A page without scripts.",
        answers=(ResponseSpec(200, "The page.", media_type="text/html"),),
    ),
    Operation(
        name="get_docs_style",
        method="get",
        path="/docs/style.css",
        tag="This document",
        summary="The page's looks",
        description="CSS.",
        answers=(ResponseSpec(200, "The style sheet.", media_type="text/css"),),
    ),
)


def openapi_routes(operations: Sequence[Operation], sockets: Sequence[SocketSpec] = ()) -> list[Route]:
    """The routes that show `operations` and `sockets`, and themselves; made at the first request for them."""

    @functools.cache
    def document() -> dict[str, Any]:
        return api_document(
            [*operations, *_OPERATIONS],
            sockets=sockets,
            version=__version__,
            description=_DESCRIPTION,
        )

    return [
        _static("/openapi.json", "application/json", lambda: to_json(document(), indent=1)),
        _static("/docs", "text/html; charset=utf-8", lambda: render_page(document()).encode()),
        _static("/docs/style.css", "text/css; charset=utf-8", _style),
    ]


def _static(path: str, media_type: str, make: Callable[[], bytes]) -> Route:
    """A route whose answer never changes."""
    made = functools.cache(make)

    async def answer(request: Request) -> Response:
        del request
        return Response(made(), headers={**_PAGE_HEADERS, "Content-Type": media_type})

    return Route(path, answer, methods=["GET"])


def _style() -> bytes:
    return Path(openapi_page.__file__).with_suffix(".css").read_bytes()
