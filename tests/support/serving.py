"""Serves an ASGI application in the test's own event loop: the one way that tests do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

from tests.support.sockets import listening_socket
from token_broker.simulator.server import EmbeddedServer

__all__ = ["run_server", "serve_app", "server_config"]

_START_S = 20


@contextlib.asynccontextmanager
async def serve_app(
    app: ASGIApp,
    *,
    lifespan: Literal["on", "off"] = "off",
    state: dict[str, Any] | None = None,
    port: int = 0,
    **options: Any,
) -> AsyncIterator[str]:
    """The application under uvicorn until the block ends; yields its base URL. `options` are `uvicorn.Config`'s.

    Each request gets a copy of `state`: the state of a lifespan that the caller runs.
    """
    server = EmbeddedServer(server_config(app, lifespan=lifespan, **options))
    async with run_server(server, port=port) as base_url:
        if state is not None:
            server.lifespan.state = state
        yield base_url


def server_config(app: ASGIApp, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration as the broker has it, with `options` in place of its own."""
    chosen: dict[str, Any] = {
        "http": "httptools",
        "ws": "websockets-sansio",
        "loop": "none",
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_graceful_shutdown": 2,
    }
    return uvicorn.Config(app, **(chosen | options))


@contextlib.asynccontextmanager
async def run_server(server: uvicorn.Server, *, port: int = 0) -> AsyncIterator[str]:
    """Runs a server of any configuration until the block ends, on `port` or a free one; yields its base URL."""
    with listening_socket(port) as listener:
        # `serve` would take the test process's signals, and raise those that came once more when it ends.
        serving = asyncio.create_task(server._serve(sockets=[listener]), name="uvicorn")
        async with asyncio.timeout(_START_S):
            while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0.002)
        assert server.started, "the application did not start"
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            if isinstance(server, EmbeddedServer):
                server.stop()
            await serving
            # A browser connects in advance: what it opened while the other connections were closed is still open.
            await asyncio.sleep(0)
            for connection in list(server.server_state.connections):
                connection.shutdown()
            await asyncio.sleep(0)
