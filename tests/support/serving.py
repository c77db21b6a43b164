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
async def serve_app(app: ASGIApp, *, lifespan: Literal["on", "off"] = "off", **options: Any) -> AsyncIterator[str]:
    """The application under uvicorn until the block ends; yields its base URL. `options` are `uvicorn.Config`'s."""
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
    server = _Server(config)
    with listening_socket() as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="serve-app")
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait({serving, listening}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        assert server.listening.is_set(), "the application did not start"
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.stop()
            await serving


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self.listening.set()

    async def main_loop(self) -> None:
        ticks = 0
        # uvicorn sleeps for 100 ms between two ticks, which each test would wait out at its end.
        while not await self.on_tick(ticks):
            ticks += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 0.1)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
