"""Serves an ASGI application in the test's own event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

from tests.support.sockets import listening_socket

__all__ = ["serve_app"]

_START_S = 20


@contextlib.asynccontextmanager
async def serve_app(
    app: ASGIApp, *, lifespan: Literal["on", "off"] = "off", state: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[str]:
    """The application under uvicorn until the block ends; yields its base URL. `options` are `uvicorn.Config`'s.

    Each request gets a copy of `state`, as it is then: the state of a lifespan that the caller runs.
    """
    chosen: dict[str, Any] = {
        "http": "httptools",
        "ws": "websockets-sansio",
        "loop": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_graceful_shutdown": 2,
        **options,
    }
    config = uvicorn.Config(app, lifespan=lifespan, **chosen)
    server = _Server(config, state)
    with listening_socket() as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="serve-app")
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait({serving, listening}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        assert server.listening.is_set(), "the application did not start"
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config, state: dict[str, Any] | None) -> None:
        super().__init__(config)
        self._state = state
        self.listening = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        if self._state is not None:
            self.lifespan.state = self._state
        await super().startup(sockets)
        if not self.should_exit:
            self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
