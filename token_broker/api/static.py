"""The browser client: the demo page at `/`, and its modules under `/client/`, all of it static and public.

The Content-Security-Policy lets the page load nothing but itself, and speak to nobody but the broker and Azure.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

import token_broker
from token_broker.web.openapi_document import Operation, Parameter, ResponseSpec

__all__ = ["AZURE_ORIGINS", "CLIENT_OPERATIONS", "client_folder", "client_routes", "content_security_policy"]

AZURE_ORIGINS = tuple(
    f"{scheme}://*.{host}"
    for host in ("openai.azure.com", "cognitiveservices.azure.com", "services.ai.azure.com")
    for scheme in ("https", "wss")
)
"""Where a plan's direct connections lead, unless the endpoint is somebody's own domain."""

_MEDIA_TYPES = {
    # Not left to the machine's table: on some machines `.js` is text/plain, and browsers refuse such modules.
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".ts": "text/plain; charset=utf-8",
}
# The ETag says it already, and no range of a compressed answer is of use; a page loads forty modules.
_LEFT_OUT = ("Last-Modified", "Accept-Ranges")
_SHIPPED_FOLDERS = {"audio", "transports"}


def client_routes(azure_origins: Sequence[str] = AZURE_ORIGINS) -> list[BaseRoute]:
    """`/` and `/client/…`. `azure_origins` are those besides the broker's own that the page may speak to."""
    folder = client_folder()
    headers = {
        "Cache-Control": "no-cache",  # asked for each time, answered with 304 from the ETag
        "Content-Security-Policy": content_security_policy(azure_origins),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    files = StaticFiles(directory=folder)

    async def page(request: Request) -> Response:
        response = await files.get_response("index.html", request.scope)
        response.headers.update(headers)
        return response

    return [
        Route("/", page, methods=["GET"], middleware=[Middleware(GZipMiddleware)]),
        Mount("/client", GZipMiddleware(_Modules(directory=folder))),
    ]


def client_folder() -> Path:
    """Where the client's files are: within the wheel, or beside the package in a checkout."""
    package = Path(token_broker.__file__).parent
    installed = package / "web_client"
    return installed if installed.is_dir() else package.parent / "web_client"


def content_security_policy(azure_origins: Sequence[str]) -> str:
    """No inline script or style, no foreign code, no frame around the page."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            " ".join(("connect-src 'self'", *azure_origins)),
            "media-src 'self' blob:",
            "worker-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


class _Modules(StaticFiles):
    """The client's files that pages need; its tests and tools are not served."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        name = PurePosixPath(path)
        media_type = _MEDIA_TYPES.get(name.suffix)
        if media_type is None or name.parent.parts[:1] not in {(), *((folder,) for folder in _SHIPPED_FOLDERS)}:
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        if response.status_code == 200:  # noqa: PLR2004  # a 304 has no body to describe
            response.headers["Content-Type"] = media_type
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        for header in _LEFT_OUT:
            del response.headers[header]
        return response


CLIENT_OPERATIONS = (
    Operation(
        name="get_page",
        method="get",
        path="/",
        tag="The browser client",
        summary="The demo page",
        description="Press Talk. Its second tab draws what `/status` says.",
        answers=(ResponseSpec(200, "The page.", media_type="text/html"), ResponseSpec(304, "As you have it.")),
    ),
    Operation(
        name="get_module",
        method="get",
        path="/client/{file}",
        tag="The browser client",
        summary="A module of the browser client",
        description="Plain ES modules, styles and images; `file` may lie in a folder, such as `transports/webrtc.js`.",
        parameters=(Parameter("file", "path", "The file.", example="voice-session.js"),),
        answers=(ResponseSpec(200, "The file.", media_type="text/javascript"), ResponseSpec(304, "As you have it.")),
        problems={404: ("not_found",)},
    ),
)
