"""The relay under uvicorn: its settings, and the one thing that ASGI has no word for.

A client that does not read can't be told goodbye over ASGI: `send` waits for it to read. And a server that closes
such a socket politely waits for it as well, for as long as TCP does. So the scope carries `give_up`, which writes the
close frame behind what is buffered already and drops the connection soon after, read or not.
"""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from token_broker.settings import Settings

__all__ = ["GIVE_UP_EXTENSION", "BrokerWebSocketProtocol", "uvicorn_options"]

GIVE_UP_EXTENSION = "voice_token_broker.give_up"
_LINGER_S = 5.0


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """What `uvicorn.Config` has to be given for the relay's promises to hold."""
    return {
        "ws": BrokerWebSocketProtocol,
        "ws_max_size": settings.client_message_bytes,
        "ws_ping_interval": settings.ping_interval_s,
        "ws_ping_timeout": settings.ping_interval_s,
        "ws_per_message_deflate": False,
    }


class BrokerWebSocketProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's WebSocket, which can be given up, is gone soon after the application is done with it, and takes any
    message for a sign of life: a client that reads slowly answers a ping late, behind all that it has still to read.
    """

    _drop: asyncio.TimerHandle | None = None
    _heard = True

    async def run_asgi(self) -> None:
        self.scope["extensions"][GIVE_UP_EXTENSION] = {"give_up": self.give_up}
        await super().run_asgi()
        self._drop_later()

    def give_up(self, code: int, reason: str) -> None:
        """Closes without waiting for the client to read anything; what it still sends is read and thrown away."""
        if self.transport.is_closing() or self.close_sent:
            return
        self.stop_keepalive()
        self.conn.send_close(code, reason)
        self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        super().data_received(data)

    def send_keepalive_ping(self) -> None:
        self._heard = False
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if self._heard or not self.writable.is_set():  # the relay's own limit holds for a client that takes nothing
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._drop is not None:
            self._drop.cancel()
        super().connection_lost(exc)

    def _drop_later(self) -> None:
        if self._drop is None and not self.disconnected:
            self._drop = self.loop.call_later(_LINGER_S, self.transport.abort)
