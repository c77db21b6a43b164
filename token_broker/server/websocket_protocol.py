"""The WebSocket protocol that the relay runs on: two ASGI extensions, a keepalive and a write timeout.

`give_up`: ASGI's `send` waits for the client to read, so a client that does not read can't be sent a close frame. The
extension writes the close frame behind the buffered data, and drops the connection soon after.

`wire`: ASGI passes each message through a queue and a task switch, which is most of what a frame of audio costs. The
extension takes and writes a message in the step that received it.
"""

import asyncio
from typing import Any

import structlog
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected

from token_broker.server import frames
from token_broker.server.client_wire import MessageSink
from token_broker.server.close_codes import CLIENT_STALLED
from token_broker.server.framed_websocket import READ, FramedWebSocket

__all__ = [
    "GIVE_UP_EXTENSION",
    "WIRE_EXTENSION",
    "BrokerWebSocketProtocol",
    "ClientGoneError",
    "bounded_websocket",
]

log = structlog.get_logger("token_broker.relay")

GIVE_UP_EXTENSION = "voice_token_broker.give_up"
WIRE_EXTENSION = "voice_token_broker.wire"
# The relay closes a stalled talk itself, and knows more about why. This limit catches everything else, a bit later.
_STALLED_AFTER = 1.5


class ClientGoneError(ClientDisconnected):
    """The application sends to a client that has left, or that was closed with `code` for its input."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class BrokerWebSocketProtocol(FramedWebSocket):
    """A WebSocket with the extensions `give_up` and `wire`.

    Any message counts as a sign of life, because a slow reader answers a ping only after all that precedes it. A client
    that reads nothing of its buffered data for one and a half `write_timeout_s` is closed with 4410.
    """

    write_timeout_s: float = 10

    _stall_timer: asyncio.TimerHandle | None = None  # runs while writing is paused
    _was_full = False  # the write buffer was full at some time since the last ping

    async def run_asgi(self) -> None:
        self.scope["extensions"][GIVE_UP_EXTENSION] = {"give_up": self.give_up}
        self.scope["extensions"][WIRE_EXTENSION] = {"wire": self}
        await super().run_asgi()
        self.offer_to(None)
        self._drop_later()

    async def receive(self) -> ASGIReceiveEvent:
        self._application_waits = True
        try:
            message = await self.queue.get()
        finally:
            self._application_waits = False
        if self.read_paused and self.queue.empty():
            self._read_later()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        text = message.get("text") if message["type"] == "websocket.send" else None
        if text is not None and self.takes_data:
            self.write_text(text.encode())
            return
        if self._ended_code is not None:
            if message["type"] == "websocket.close":
                return
            raise ClientGoneError(self._ended_code)
        await super().send(message)
        if message["type"] == "websocket.accept":
            self._accepted()
        elif message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True  # refused with a complete response: uvicorn would log an error otherwise
        if self.close_sent:
            self._closed()

    @property
    def takes_data(self) -> bool:
        return self._input is READ and self.writable.is_set() and not self.disconnected

    def write_text(self, payload: bytes) -> None:
        """Writes a text message as one frame.

        `send` writes the same bytes through a dozen calls, for each of a talk's frames.
        """
        self.transport.write(frames.text_frame_head(len(payload)) + payload)

    def offer_to(self, sink: MessageSink | None) -> None:
        self._sink = sink

    def give_up(self, code: int, reason: str) -> None:
        """Closes without waiting for the client to read; its input is discarded."""
        if self.transport.is_closing() or self.close_sent or self._ended_code is not None:
            return
        self._send_close(code, reason)
        self._closed()

    # --- keepalive

    def send_keepalive_ping(self) -> None:
        self._heard = False
        self._was_full = not self.writable.is_set()
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if self._heard or self._was_full:  # the stall timer closes a client that reads nothing
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()
        self._discard_input()
        self._drop_later()

    def pause_writing(self) -> None:
        self._was_full = True
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall_timer()
        if self._input is READ:
            self._send_owed_pong()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_stall_timer()
        super().connection_lost(exc)

    def _watch_writing(self) -> None:
        buffered_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(
            self.write_timeout_s * _STALLED_AFTER, self._check_writing, buffered_bytes
        )

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _check_writing(self, bytes_before: int) -> None:
        """Closes a client that has read nothing of its buffered data since the last check."""
        self._stall_timer = None
        if self.transport.get_write_buffer_size() < bytes_before:
            self._watch_writing()
            return
        if self.close_sent or self._ended_code is not None:  # the connection ends soon anyway
            return
        reason = "the client does not read"
        log.info("websocket_failed", code=CLIENT_STALLED, reason=reason)
        self.give_up(CLIENT_STALLED, reason)
        self._tell_end(CLIENT_STALLED, reason)


def bounded_websocket(
    *, frames_per_second: float, control_frames_per_second: float, write_timeout_s: float, image_bytes: int = 0
) -> type[BrokerWebSocketProtocol]:
    """A protocol class with these limits, for `uvicorn.Config(ws=…)`, which instantiates it itself."""
    limits: dict[str, Any] = {
        "frames_per_second": frames_per_second,
        "control_frames_per_second": control_frames_per_second,
        "write_timeout_s": write_timeout_s,
        "image_bytes": image_bytes,
    }
    return type(BrokerWebSocketProtocol.__name__, (BrokerWebSocketProtocol,), limits)
