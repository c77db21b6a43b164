"""The relay under uvicorn: its settings, and the one thing that ASGI has no word for.

A client that does not read can't be told goodbye over ASGI: `send` waits for it to read. And a server that closes
such a socket politely waits for it as well, for as long as TCP does. So the scope carries `give_up`, which writes the
close frame behind what is buffered already and drops the connection soon after, read or not.
"""

import asyncio
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State
from websockets.speedups import apply_mask

from token_broker.relay.frames import FrameEdge, text_frame_head, whole_text_frame
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
    _heard = True  # since the last ping
    _was_full = False  # since the last ping: what the client has to read stood before it
    _edge: FrameEdge | None = None  # None until the handshake has been read

    async def run_asgi(self) -> None:
        self.scope["extensions"][GIVE_UP_EXTENSION] = {"give_up": self.give_up}
        await super().run_asgi()
        self._drop_later()

    async def send(self, message: ASGISendEvent) -> None:
        """Writes a text message as the one frame that it is, and leaves everything else to uvicorn.

        What uvicorn would do for it comes to the same bytes, by way of a dozen calls for each of a talk's frames.
        """
        if (
            message["type"] != "websocket.send"
            or (text := message.get("text")) is None
            or not self.handshake_complete
            or self.close_sent
            or self.disconnected
            or self.conn.state is not State.OPEN
            or self.conn.extensions
            or not self.writable.is_set()
        ):
            await super().send(message)
            if message["type"] == "websocket.http.response.body" and self.close_sent:
                self.handshake_complete = True  # refused, and whole: uvicorn would complain that it was not taken
            return
        payload = text.encode()
        self.transport.write(text_frame_head(len(payload)) + payload)

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
        """Takes whole text messages straight out of `data`; whatever is not that plain goes to uvicorn's parser."""
        self._heard = True
        edge = self._edge
        if edge is None:  # the first data is the handshake, whole: uvicorn's HTTP side has read it before
            self._edge = FrameEdge()
            super().data_received(data)
            return
        while edge.between_frames and self._takes_frames_plainly() and (span := whole_text_frame(data)) is not None:
            begin, end = span
            if end - begin > self.config.ws_max_size:
                break
            try:
                text = apply_mask(data[begin:end], data[begin - 4 : begin]).decode()
            except UnicodeDecodeError:
                break
            self.queue.put_nowait({"type": "websocket.receive", "text": text})
            if not self.read_paused:
                self.read_paused = True
                self.transport.pause_reading()
            if end == len(data):
                return
            data = data[end:]
        edge.walk(data)
        super().data_received(data)

    def _takes_frames_plainly(self) -> bool:
        """Whether the parser has nothing begun, and a message is still for the application."""
        conn = self.conn
        return conn.state is State.OPEN and conn.current_size is None and not self.close_sent and not conn.extensions

    def send_keepalive_ping(self) -> None:
        self._heard = False
        self._was_full = not self.writable.is_set()
        super().send_keepalive_ping()

    def pause_writing(self) -> None:
        self._was_full = True
        super().pause_writing()

    def keepalive_timeout(self) -> None:
        if self._heard or self._was_full:  # a client that takes nothing at all meets the relay's own limit
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
