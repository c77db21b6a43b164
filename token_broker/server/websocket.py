"""The relay under uvicorn: its settings, and the two things that ASGI has no word for.

A client that does not read can't be told goodbye over ASGI: `send` waits for it to read. And a server that closes
such a socket politely waits for it as well, for as long as TCP does. So the scope carries `give_up`, which writes the
close frame behind what is buffered already and drops the connection soon after, read or not.

And ASGI hands on each message through a queue and from task to task, which is most of what a frame of audio costs. So
the scope carries the `wire` of `relay.direct`, by which a message may be taken and written on the spot.
"""

import asyncio
from typing import Any

import structlog
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected

from token_broker.server import frames
from token_broker.server.close_codes import CLIENT_STALLED
from token_broker.server.framed_websocket import READ, FramedWebSocket
from token_broker.server.wire import MessageSink
from token_broker.settings import Settings

__all__ = [
    "GIVE_UP_EXTENSION",
    "WIRE_EXTENSION",
    "BrokerWebSocketProtocol",
    "ClientGoneError",
    "bounded_websocket",
    "uvicorn_options",
]

log = structlog.get_logger("token_broker.relay")

GIVE_UP_EXTENSION = "voice_token_broker.give_up"
WIRE_EXTENSION = "voice_token_broker.wire"
# The relay's own limit ends a talk with its proper reason; this one is for all else, so it comes a little later.
_STALLED_AFTER = 1.5


class ClientGoneError(ClientDisconnected):
    """The application sends to a client that has left, or was closed for what it did: with `code`."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """What `uvicorn.Config` has to be given for the relay's promises to hold."""
    return {
        "ws": bounded_websocket(
            frames_per_second=settings.frames_per_second,
            control_frames_per_second=settings.control_frames_per_second,
            write_timeout_s=settings.client_write_timeout_s,
        ),
        "ws_max_size": settings.client_message_bytes,
        "ws_ping_interval": settings.ping_interval_s,
        "ws_ping_timeout": settings.ping_interval_s,
        "ws_per_message_deflate": False,
    }


class BrokerWebSocketProtocol(FramedWebSocket):
    """A WebSocket that can be given up, and takes any message for a sign of life: a client that reads slowly answers a
    ping late, behind all that it has still to read. One that takes nothing of what waits for it for `write_timeout_s`
    and a half is closed with 4410.
    """

    write_timeout_s: float = 10

    _stall_timer: asyncio.TimerHandle | None = None  # runs while the client has more to read than it takes
    _was_full = False  # since the last ping: what the client has to read stood before it

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
            self._read_on()
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
            self.handshake_complete = True  # refused, and whole: uvicorn would complain that it was not taken
        if self.close_sent:
            self._closed()

    @property
    def takes_data(self) -> bool:
        return self._input is READ and self.writable.is_set() and not self.disconnected

    def write_text(self, payload: bytes) -> None:
        """Writes a text message as the one frame that it is.

        What uvicorn would do for it comes to the same bytes, by way of a dozen calls for each of a talk's frames.
        """
        self.transport.write(frames.text_frame_head(len(payload)) + payload)

    def offer_to(self, sink: MessageSink | None) -> None:
        self._sink = sink

    def give_up(self, code: int, reason: str) -> None:
        """Closes without waiting for the client to read anything; what it still sends is thrown away."""
        if self.transport.is_closing() or self.close_sent or self._ended_code is not None:
            return
        self._send_close(code, reason)
        self._closed()

    # --- signs of life

    def send_keepalive_ping(self) -> None:
        self._heard = False
        self._was_full = not self.writable.is_set()
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if self._heard or self._was_full:  # a client that takes nothing at all meets a limit of its own
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
            self._pay_pong()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_stall_timer()
        super().connection_lost(exc)

    def _watch_writing(self) -> None:
        waiting_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(
            self.write_timeout_s * _STALLED_AFTER, self._look_at_writing, waiting_bytes
        )

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _look_at_writing(self, waited_bytes: int) -> None:
        """Gives a client up that took nothing of what waits for it since the last look."""
        self._stall_timer = None
        if self.transport.get_write_buffer_size() < waited_bytes:
            self._watch_writing()
            return
        if self.close_sent or self._ended_code is not None:  # and so it is gone soon
            return
        reason = "the client does not read"
        log.info("websocket_failed", code=CLIENT_STALLED, reason=reason)
        self.give_up(CLIENT_STALLED, reason)
        self._tell_end(CLIENT_STALLED, reason)


def bounded_websocket(
    *, frames_per_second: float, control_frames_per_second: float, write_timeout_s: float
) -> type[BrokerWebSocketProtocol]:
    """The protocol with these limits, for `uvicorn.Config(ws=…)`, which takes a class and makes its instances."""
    limits: dict[str, Any] = {
        "frames_per_second": frames_per_second,
        "control_frames_per_second": control_frames_per_second,
        "write_timeout_s": write_timeout_s,
    }
    return type(BrokerWebSocketProtocol.__name__, (BrokerWebSocketProtocol,), limits)
