"""An echo under uvicorn, with the broker's WebSocket, in a thread of its own."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
import uvloop

from token_broker.server.websocket_protocol import BrokerWebSocketProtocol, bounded_websocket

__all__ = ["echo_server"]


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


@contextlib.contextmanager
def echo_server(loop: str, *, protocol: type[BrokerWebSocketProtocol] | None = None) -> Iterator[int]:
    """Its port. Messages may be of 16 MiB, and frames as many as the cases have."""
    unlimited = bounded_websocket(frames_per_second=0, control_frames_per_second=0, write_timeout_s=10)
    config = uvicorn.Config(
        echo, port=0, ws=protocol or unlimited, ws_max_size=2**24, lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)

    def run() -> None:
        factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(server._serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(15)
