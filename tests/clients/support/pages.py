"""A frontend's page at an origin of its own, with the clients bundled into it."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.clients.support.programs import CLIENTS
from tests.support.node import installed_modules, run_node
from tests.support.serving import serve_app

__all__ = ["bundle", "serve_page"]

_PAGE = """<!doctype html><html lang="en"><title>A frontend</title><link rel="icon" href="data:,">
<script>globalThis.BROKER_URL = new URLSearchParams(location.search).get("broker");</script>
<button id="talk">Talk</button><pre id="said"></pre>
<script type="module" src="/bundle.mjs"></script>"""


async def bundle(source: Path | str, name: str = "snippet.mjs") -> str:
    """A module and its imports in one file, by esbuild. `source` is a path, or the module's text."""
    modules = installed_modules(CLIENTS)
    text = "" if isinstance(source, Path) else source
    entry = [str(source)] if isinstance(source, Path) else [f"--sourcefile={name}"]
    esbuild = modules / "esbuild" / "bin" / "esbuild"
    options = ("--bundle", "--format=esm", "--platform=browser", "--log-level=warning")
    return await run_node(esbuild, *entry, *options, cwd=CLIENTS, stdin=text)


@contextlib.asynccontextmanager
async def serve_page(bundled: str) -> AsyncIterator[str]:
    """Serves a page that runs `bundled`, until the block ends; yields its origin. `?broker=` is its `BROKER_URL`."""

    async def page(_: Request) -> Response:
        return HTMLResponse(_PAGE)

    async def script(_: Request) -> Response:
        return PlainTextResponse(bundled, media_type="text/javascript")

    async with serve_app(Starlette(routes=[Route("/", page), Route("/bundle.mjs", script)])) as origin:
        yield origin
