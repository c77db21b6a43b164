"""Uvicorn's WebSocket, whose frames are read by `relay.frames`: no more at once than the event loop can spare, and no
more a second than a connection may send. What is closed is read no further, and gone soon after.
"""

import asyncio
import contextlib
import enum
from http import HTTPStatus

import structlog
from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State

from token_broker.server import frames
from token_broker.server.frames import FrameBudget, FrameError, FrameReader
from token_broker.server.http import raw_answer
from token_broker.server.wire import MessageSink
from token_broker.web.problems import Problem

__all__ = ["READ", "FramedWebSocket", "Input"]

log = structlog.get_logger("token_broker.relay")

_LINGER_S = 5.0
# A millisecond or so of the event loop: what is left over waits for its next turn.
_FRAMES_A_TURN = 64
# A socket that is closed while data waits in it takes the close frame back. So much is thrown away first.
_DISCARDED_BYTES_AT_MOST = 4_194_304
_TEXT = frames.TEXT
_NO_HANDSHAKE = Problem(
    400,
    "malformed_handshake",
    "Send a well-formed WebSocket handshake: version 13, no body, at most 128 headers and 8 KiB a line.",
)


class Input(enum.Enum):
    """What becomes of data that comes."""

    HANDSHAKE = enum.auto()  # it is the handshake's
    HELD = enum.auto()  # kept unread until the application has accepted
    READ = enum.auto()
    SKIPPED = enum.auto()  # we have closed, and look for nothing but the client's close frame
    DISCARDED = enum.auto()  # thrown away unread


READ = Input.READ  # looked up once: an enum's members cost a call


class FramedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket that negotiates no extension, answers pings as long as the client reads, and closes with 1002, 1007,
    1008 or 1009 where it sends what it may not, or more than `frames_per_second` and `control_frames_per_second` (with
    a burst of ten times that; 0: no limit).
    """

    frames_per_second: float = 500
    control_frames_per_second: float = 20

    _input = Input.HANDSHAKE
    _reader: FrameReader
    _turn: asyncio.Handle | None = None  # the next turn of the loop, where frames are left over for it
    _discarded_bytes = 0
    _drop_timer: asyncio.TimerHandle | None = None
    _owed_pong: bytes | None = None  # the last ping's payload, while the client does not read
    _ended_code: int | None = None  # by the client or for what it did: the application has nobody to send to
    _heard = True  # since the last ping
    _sink: MessageSink | None = None
    _application_waits = False  # for a message: it has handled all that came before

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.conn.available_extensions = []
        budget = FrameBudget(self.frames_per_second, self.control_frames_per_second, self.loop.time())
        self._reader = FrameReader(max_message_bytes=self.config.ws_max_size, budget=budget)

    # --- what comes

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self._input is not READ:
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
            case Input.HANDSHAKE:  # which comes whole: uvicorn's HTTP side has read it before
                self._input = Input.HELD
                super().data_received(data)
                if not self.handshake_initiated and not self.transport.is_closing():  # uvicorn would wait for another
                    self._refuse_handshake()
            case Input.HELD:
                self._reader.feed(data)
                self._pause_reading()
            case Input.SKIPPED:
                self._reader.feed(data)
                self._skip_to_close()
            case Input.DISCARDED:
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
        sink = self._sink
        if sink is not None and self._application_waits and sink(payload):
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
        if self._input is not READ or not self.queue.empty():
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
        self._input = Input.DISCARDED
        self.transport.write(raw_answer(_NO_HANDSHAKE))
        self.transport.close()
        self._drop_later()

    def _accepted(self) -> None:
        if self._input is Input.HELD and self.conn.state is State.OPEN:
            self._input = Input.READ
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
        if self._input is READ:
            self._input = Input.SKIPPED
            self._linger()
            self._resume_reading()
            self._skip_to_close()
        elif self._input is Input.HELD:  # refused over HTTP: the transport is closing
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
        self._input = Input.DISCARDED
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
        for timer in (self._drop_timer, self._turn):
            if timer is not None:
                timer.cancel()
        self._input = Input.DISCARDED
        super().connection_lost(exc)
