"""The transport under a request, for faults that ASGI can't express: a reset, a header sent byte by byte.

The two protocols below are uvicorn's own. They only put a `Wire` into each request's scope, under
`scope["extensions"]["simulator.wire"]`.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    from websockets.http11 import Request

EXTENSION = "simulator.wire"

# SO_LINGER on, for zero seconds: closing then sends RST where it would send FIN.
_LINGER_NOT = struct.pack("ii", 1, 0)
# A reset makes the peer's kernel drop what its program has not read yet: what was written before gets this long.
_HAND_OVER_S = 0.05


class Wire:
    """One connection's transport."""

    def __init__(self, transport: asyncio.Transport, drain: Callable[[], Awaitable[object]]) -> None:
        self.answers_pings = True
        self._transport = transport
        self._drain = drain

    async def write(self, data: bytes) -> None:
        """Writes raw bytes beside the protocol, and waits while the peer does not take them."""
        if not self._transport.is_closing():
            self._transport.write(data)
            await self._drain()

    async def hand_over(self) -> None:
        """Gives what was written the time to arrive before a reset."""
        await self._drain()
        await asyncio.sleep(_HAND_OVER_S)

    def reset(self) -> None:
        """Ends the connection with a TCP RST."""
        sock = cast("socket.socket | None", self._transport.get_extra_info("socket"))
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._transport.abort()

    def abort(self) -> None:
        """Ends the connection at once; what was not sent yet is dropped."""
        self._transport.abort()

    def close(self) -> None:
        """Ends the connection with a FIN, once what was written has gone."""
        self._transport.close()


def wire_of(scope: Scope) -> Wire:
    """The request's wire.

    Raises:
        RuntimeError: another server than `server.serve` runs the application.

    """
    wire = scope.get("extensions", {}).get(EXTENSION)
    if not isinstance(wire, Wire):
        raise RuntimeError("this fault needs the simulator's own server: start it with `serve`")  # noqa: TRY004
    return wire


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope = cast("Scope", self.scope)
        scope["extensions"] = {EXTENSION: Wire(self.transport, self.flow.drain)}


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSockets, without compression."""

    def handle_connect(self, event: "Request") -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):  # a malformed handshake was answered already, and has none
            scope = cast("Scope", self.scope)
            self._wire = scope["extensions"][EXTENSION] = Wire(self.transport, self.writable.wait)

    def handle_ping(self) -> None:
        if self._wire.answers_pings:
            super().handle_ping()
        else:
            # The pong that the parser has made.
            self.conn.data_to_send()
