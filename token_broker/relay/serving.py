"""The relay under uvicorn: its settings, and the two things that ASGI has no word for.

A client that does not read can't be told goodbye over ASGI: `send` waits for it to read. And a server that closes
such a socket politely waits for it as well, for as long as TCP does. So the scope carries `give_up`, which writes the
close frame behind what is buffered already and drops the connection soon after, read or not.

And ASGI hands on each message through a queue and from task to task, which is most of what a frame of audio costs. So
the scope carries the `wire` of `relay.direct`, by which a message may be taken and written on the spot.
"""

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.protocol import State
from websockets.speedups import apply_mask

from token_broker.http_protocol import raw_answer
from token_broker.problems import Problem
from token_broker.relay.direct import Taker
from token_broker.relay.frames import FrameEdge, text_frame, text_frame_head
from token_broker.settings import Settings

__all__ = ["GIVE_UP_EXTENSION", "WIRE_EXTENSION", "BrokerWebSocketProtocol", "uvicorn_options"]

GIVE_UP_EXTENSION = "voice_token_broker.give_up"
WIRE_EXTENSION = "voice_token_broker.wire"
_LINGER_S = 5.0
_OPEN = State.OPEN  # looked up once: an enum's members cost a call
_NO_HANDSHAKE = Problem(
    400,
    "malformed_handshake",
    "Send a well-formed WebSocket handshake: version 13, no body, at most 128 headers and 8 KiB a line.",
)


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
    _begun = b""  # a plain text message, less than 64 KiB, as far as it has come
    _taker: Taker | None = None
    _application_waits = False  # for a message: it has handled all that came before

    async def run_asgi(self) -> None:
        self.scope["extensions"][GIVE_UP_EXTENSION] = {"give_up": self.give_up}
        self.scope["extensions"][WIRE_EXTENSION] = {"wire": self}
        await super().run_asgi()
        self.offer_to(None)
        self._drop_later()

    async def receive(self) -> ASGIReceiveEvent:
        self._application_waits = True
        try:
            return await super().receive()
        finally:
            self._application_waits = False

    async def send(self, message: ASGISendEvent) -> None:
        text = message.get("text") if message["type"] == "websocket.send" else None
        if text is not None and self.takes_data:
            self.write_text(text.encode())
            return
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True  # refused, and whole: uvicorn would complain that it was not taken

    @property
    def takes_data(self) -> bool:
        conn = self.conn
        return conn.state is _OPEN and self.writable.is_set() and not self.disconnected and not conn.extensions

    def write_text(self, payload: bytes) -> None:
        """Writes a text message as the one frame that it is.

        What uvicorn would do for it comes to the same bytes, by way of a dozen calls for each of a talk's frames.
        """
        self.transport.write(text_frame_head(len(payload)) + payload)

    def offer_to(self, taker: Taker | None) -> None:
        self._taker = taker

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
            if not self.handshake_initiated and not self.transport.is_closing():  # uvicorn would wait for another one
                self._refuse_handshake()
            return
        if self._begun:
            data = self._begun + data
            self._begun = b""
        while edge.between_frames and self._takes_frames_plainly() and (span := text_frame(data)) is not None:
            begin, end = span
            if end - begin > self.config.ws_max_size:
                break
            if end > len(data):
                self._begun = data
                return
            payload = apply_mask(data[begin:end], data[begin - 4 : begin])
            if not self._is_taken(payload):
                try:
                    text = payload.decode()
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

    def _is_taken(self, payload: bytes) -> bool:
        taker = self._taker
        return taker is not None and self._application_waits and self.queue.empty() and taker(payload)

    def handle_connect(self, event: Request) -> None:
        """Refuses what is no handshake in our words: websockets' repeat what was offered, a credential among it."""
        if self.conn.accept(event).status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            super().handle_connect(event)
        else:
            self._refuse_handshake()

    def _refuse_handshake(self) -> None:
        self.transport.write(raw_answer(_NO_HANDSHAKE))
        self.transport.close()

    def _takes_frames_plainly(self) -> bool:
        """Whether the parser has nothing begun, and a message is still for the application."""
        conn = self.conn
        return conn.state is _OPEN and conn.current_size is None and not self.close_sent and not conn.extensions

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
