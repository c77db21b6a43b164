"""The relay under uvicorn: its settings, and what uvicorn's WebSocket leaves open.

Frames are read by `relay.frames`, no more at once than the event loop can spare and no more a second than a connection
may send. What is closed is read no further, and gone soon after, whether the client reads or not. A client that does
not read is sent no pongs, and given up in the end.

Two things ASGI has no word for. A client that does not read can't be told goodbye: `send` waits for it to read. So the
scope carries `give_up`, which writes the close frame behind what is buffered already and drops the connection soon
after. And ASGI hands on each message through a queue and from task to task, which is most of what a frame of audio
costs. So the scope carries the `wire` of `relay.direct`, by which a message may be taken and written on the spot.
"""

import asyncio
import contextlib
import enum
from http import HTTPStatus
from typing import Any

import structlog
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State

from token_broker.http_protocol import raw_answer
from token_broker.problems import Problem
from token_broker.relay import frames
from token_broker.relay.closing import CLIENT_STALLED
from token_broker.relay.direct import Taker
from token_broker.relay.frames import FrameBudget, FrameError, FrameReader
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
_LINGER_S = 5.0
# A millisecond or so of the event loop: what is left over waits for its next turn.
_FRAMES_A_TURN = 64
# A socket that is closed while data waits in it takes the close frame back. So much is thrown away first.
_DISCARDED_BYTES_AT_MOST = 4_194_304
# The relay's own limit ends a talk with its proper reason; this one is for all else, so it comes a little later.
_STALLED_AFTER = 1.5
_TEXT = frames.TEXT
_NO_HANDSHAKE = Problem(
    400,
    "malformed_handshake",
    "Send a well-formed WebSocket handshake: version 13, no body, at most 128 headers and 8 KiB a line.",
)


class ClientGoneError(ClientDisconnected):
    """The application sends to a client that has left, or was closed for what it did: with `code`."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class _Input(enum.Enum):
    """What becomes of data that comes."""

    HANDSHAKE = enum.auto()  # it is the handshake's
    HELD = enum.auto()  # kept unread until the application has accepted
    READ = enum.auto()
    SKIPPED = enum.auto()  # we have closed, and look for nothing but the client's close frame
    DISCARDED = enum.auto()  # thrown away unread


_READ = _Input.READ  # looked up once: an enum's members cost a call


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


class BrokerWebSocketProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's WebSocket, whose frames are ours to read. It negotiates no extension.

    It can be given up, is gone soon after it is closed, and takes any message for a sign of life: a client that reads
    slowly answers a ping late, behind all that it has still to read. A client that sends more frames than
    `frames_per_second` or `control_frames_per_second` allow (a burst of ten times that; 0: no limit) is closed with
    1008, one that takes nothing of what waits for it for `write_timeout_s` and a half with 4410.
    """

    frames_per_second: float = 500
    control_frames_per_second: float = 20
    write_timeout_s: float = 10

    _input = _Input.HANDSHAKE
    _reader: FrameReader
    _turn: asyncio.Handle | None = None  # the next turn of the loop, where frames are left over for it
    _discarded_bytes = 0
    _drop_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None  # runs while the client has more to read than it takes
    _owed_pong: bytes | None = None  # the last ping's payload, while the client does not read
    _ended_code: int | None = None  # by the client or for what it did: the application has nobody to send to
    _heard = True  # since the last ping
    _was_full = False  # since the last ping: what the client has to read stood before it
    _taker: Taker | None = None
    _application_waits = False  # for a message: it has handled all that came before

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.conn.available_extensions = []
        budget = FrameBudget(self.frames_per_second, self.control_frames_per_second, self.loop.time())
        self._reader = FrameReader(max_message_bytes=self.config.ws_max_size, budget=budget)

    # --- for the application

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
        return self._input is _READ and self.writable.is_set() and not self.disconnected

    def write_text(self, payload: bytes) -> None:
        """Writes a text message as the one frame that it is.

        What uvicorn would do for it comes to the same bytes, by way of a dozen calls for each of a talk's frames.
        """
        self.transport.write(frames.text_frame_head(len(payload)) + payload)

    def offer_to(self, taker: Taker | None) -> None:
        self._taker = taker

    def give_up(self, code: int, reason: str) -> None:
        """Closes without waiting for the client to read anything; what it still sends is thrown away."""
        if self.transport.is_closing() or self.close_sent or self._ended_code is not None:
            return
        self._send_close(code, reason)
        self._closed()

    # --- what comes

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self._input is not _READ:
            self._take_unread(data)
            return
        reader = self._reader
        reader.budget.now_s = self.loop.time()
        try:
            if (payload := reader.whole_text(data)) is not None:
                self._on_text(payload)
                return
            reader.feed(data)
            if not self.read_paused:
                self._read_frames()
        except FrameError as error:
            self._fail(error.code, error.reason)

    def _take_unread(self, data: bytes) -> None:
        match self._input:
            case _Input.HANDSHAKE:  # which comes whole: uvicorn's HTTP side has read it before
                self._input = _Input.HELD
                super().data_received(data)
                if not self.handshake_initiated and not self.transport.is_closing():  # uvicorn would wait for another
                    self._refuse_handshake()
            case _Input.HELD:
                self._reader.feed(data)
                self._pause_reading()
            case _Input.SKIPPED:
                self._reader.feed(data)
                self._skip_to_close()
            case _Input.DISCARDED:
                self._discarded_bytes += len(data)
                if self._discarded_bytes > _DISCARDED_BYTES_AT_MOST:
                    self.transport.pause_reading()

    def _read_frames(self) -> None:
        """Handles what has been fed, up to the first message that is for the application's queue. Raises FrameError.

        That message is handled before anything else is read, and between two of them, as after `_FRAMES_A_TURN`, the
        loop gets its turn: so nobody else waits for long, however small the frames are.
        """
        reader = self._reader
        for _ in range(_FRAMES_A_TURN):
            if (frame := reader.read()) is None:
                if self.read_paused:
                    self.read_paused = False
                    self.transport.resume_reading()
                return
            opcode, payload = frame
            if opcode == _TEXT:
                goes_on = self._on_text(payload)
            elif opcode == frames.BINARY:
                self._queue({"type": "websocket.receive", "bytes": payload})
                goes_on = False
            else:
                goes_on = self._goes_on_after(opcode, payload)
            if not goes_on:
                return
        self._pause_reading()
        self._read_on()

    def _on_text(self, payload: bytes) -> bool:
        """Whether it was taken on the spot; else it was queued."""
        taker = self._taker
        if taker is not None and self._application_waits and taker(payload):
            return True
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            raise FrameError(frames.INVALID_TEXT, "a text was not UTF-8") from None
        self._queue({"type": "websocket.receive", "text": text})
        return False

    def _queue(self, message: ASGIReceiveEvent) -> None:
        self._application_waits = False
        self.queue.put_nowait(message)
        self._pause_reading()

    def _goes_on_after(self, opcode: int, payload: bytes) -> bool:
        """Handles a control frame, or a fragment that is not the last; False: it was the client's close."""
        if opcode == frames.PING:
            self._owed_pong = payload  # an earlier one that is still owed need not be sent (RFC 6455 §5.5.3)
            self._pay_pong()
        elif opcode == frames.PONG:
            self.handle_pong(Frame(Opcode.PONG, payload))
        elif opcode == frames.CLOSE:
            self._on_close(*frames.close_payload(payload))
            return False
        return True

    def _pay_pong(self) -> None:
        """Answers the last ping, if the client reads: else its pongs would only pile up here."""
        if self._owed_pong is not None and self.writable.is_set():
            self.transport.write(frames.pong_frame(self._owed_pong))
            self._owed_pong = None

    def _pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _read_on(self) -> None:
        """Reads what is left over in the loop's next turn, and then again what comes."""
        if not self._reader.pending:
            self.read_paused = False
            self.transport.resume_reading()
        elif self._turn is None:
            self._turn = self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        if self._input is not _READ or not self.queue.empty():
            return
        self._reader.budget.now_s = self.loop.time()
        try:
            self._read_frames()
        except FrameError as error:
            self._fail(error.code, error.reason)

    # --- the handshake

    def handle_connect(self, event: Request) -> None:
        """Refuses what is no handshake in our words: websockets' repeat what was offered, a credential among it."""
        if self.conn.accept(event).status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            super().handle_connect(event)
        else:
            self._refuse_handshake()

    def _refuse_handshake(self) -> None:
        self._input = _Input.DISCARDED
        self.transport.write(raw_answer(_NO_HANDSHAKE))
        self.transport.close()
        self._drop_later()

    def _accepted(self) -> None:
        if self._input is _Input.HELD and self.conn.state is State.OPEN:
            self._input = _Input.READ
            if self.read_paused:
                self._read_on()

    # --- the end

    def _on_close(self, code: int, reason: str) -> None:
        """The client has closed: answers with its own words, and closes the connection (RFC 6455 §5.5.1, §7.1.1)."""
        self._tell_end(code, reason)
        self._send_close(None if code == frames.NO_STATUS else code, reason)
        self._discard_input()
        self.transport.close()
        self._drop_later()

    def _fail(self, code: int, reason: str) -> None:
        """Fails the connection for what the client sent (RFC 6455 §7.1.7): says why, and takes nothing more from it.

        Closed at once, with data of the client's on its way, it would take our close frame back. So only our side of
        it is closed, which tells the client that nothing follows, and what comes until it has gone is thrown away.
        """
        log.info("websocket_failed", code=code, reason=reason)
        self._tell_end(code, reason)
        self._send_close(code, reason)
        self._linger()
        self._hang_up()

    def _tell_end(self, code: int, reason: str) -> None:
        self._ended_code = code
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})

    def _closed(self) -> None:
        """After our close frame: waits for the client's, for a while."""
        self._drop_later()
        if self._input is _READ:
            self._input = _Input.SKIPPED
            self._linger()
            self._resume_reading()
            self._skip_to_close()
        elif self._input is _Input.HELD:  # refused over HTTP: the transport is closing
            self._discard_input()

    def _skip_to_close(self) -> None:
        try:
            if not self._reader.skip_to_close():
                return
        except FrameError:
            self._hang_up()
            return
        self._discard_input()
        self.transport.close()

    def _hang_up(self) -> None:
        """Says nothing more and hears nothing more: the client is to close, or is dropped in the end."""
        self._discard_input()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            with contextlib.suppress(OSError):  # the client has gone meanwhile
                self.transport.write_eof()

    def _send_close(self, code: int | None, reason: str) -> None:
        self.stop_keepalive()
        if self.conn.state is State.OPEN:
            self.conn.send_close(code, reason)
            self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True

    def _discard_input(self) -> None:
        self._input = _Input.DISCARDED
        self._reader.drop()
        self._resume_reading()

    def _resume_reading(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def _linger(self) -> None:
        """Keeps uvicorn from closing the connection as soon as the application has returned."""
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _drop_later(self) -> None:
        if self._drop_timer is None and not self.disconnected:
            self._drop_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def shutdown(self) -> None:
        if self._ended_code is not None:  # uvicorn would say goodbye once more
            self.transport.close()
            return
        super().shutdown()
        self._discard_input()
        self._drop_later()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._drop_timer, self._stall_timer, self._turn):
            if timer is not None:
                timer.cancel()
        self._input = _Input.DISCARDED
        super().connection_lost(exc)

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
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._input is _READ:
            self._pay_pong()

    def _watch_writing(self) -> None:
        waiting_bytes = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(
            self.write_timeout_s * _STALLED_AFTER, self._look_at_writing, waiting_bytes
        )

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
