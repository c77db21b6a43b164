"""ASGI apps under a real uvicorn on loopback, in the test's own loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn


@contextlib.asynccontextmanager
async def serving(app: Any, *, port: int = 0, lifespan: bool = False) -> AsyncIterator[str]:
    """Serves `app` on 127.0.0.1 while the block runs; yields its base URL."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_level="critical", lifespan="on" if lifespan else "off", access_log=False)
    config.timeout_graceful_shutdown = 0
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
