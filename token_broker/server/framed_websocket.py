"""Uvicorn's WebSocket protocol with a frame reader of our own (`server.frames`).

It reads no more frames at once than the event loop can spare, and no more a second than a connection may send. After a
close it discards what the client sends, and drops the connection soon.
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
from token_broker.server.client_wire import IMAGE_FIELD, OVERSIZED_IMAGE, MessageSink
from token_broker.server.frames import FrameBudget, FrameError, FrameReader
from token_broker.server.handshake import read_handshake
from token_broker.server.http_protocol import refuse
from token_broker.web.requests import Problem

__all__ = ["READ", "FramedWebSocket", "Input"]

log = structlog.get_logger("token_broker.relay")

_LINGER_S = 5.0
# About a millisecond of the event loop. The remaining frames wait for its next iteration.
_MAX_FRAMES_PER_STEP = 64
# TCP resets a socket that is closed with unread data, and the client may lose the close frame that was sent before. So
# up to this much is read and discarded.
_MAX_DISCARDED_BYTES = 4_194_304
_TEXT = frames.TEXT
_NO_HANDSHAKE = Problem(
    400,
    "malformed_handshake",
    "Send a well-formed WebSocket handshake: version 13, and no body.",
)


class Input(enum.Enum):
    """What the protocol does with incoming data."""

    HANDSHAKE = enum.auto()  # parse it as the handshake
    HELD = enum.auto()  # keep it until the application has accepted
    READ = enum.auto()
    SKIPPED = enum.auto()  # the server has closed: look for the client's close frame only
    DISCARDED = enum.auto()


READ = Input.READ  # looking up a member of an enum costs a call, and each frame needs it


class FramedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket without extensions, which answers pings while the client reads.

    It closes with 1002, 1007 or 1009 on invalid input, and with 1008 when the client sends more than
    `frames_per_second` or `control_frames_per_second`, with a burst of ten times that (0: no limit).
    """

    frames_per_second: float = 500
    control_frames_per_second: float = 20
    image_bytes: int = 0  # 0: a message with an image may be as long as any other

    _input = Input.HANDSHAKE
    _reader: FrameReader
    _next_step: asyncio.Handle | None = None  # the next step, when unread frames remain
    _discarded_bytes = 0
    _drop_timer: asyncio.TimerHandle | None = None
    _owed_pong: bytes | None = None  # payload of the last ping, unanswered while the client does not read
    _ended_code: int | None = None  # set when the client closed or was closed: the application can no longer send
    _heard = True  # anything received since the last ping
    pings = 0  # received
    _sink: MessageSink | None = None
    _application_waits = False  # the application has handled all earlier messages and awaits the next

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.conn.available_extensions = []
        budget = FrameBudget(self.frames_per_second, self.control_frames_per_second, self.loop.time())
        self._reader = FrameReader(
            max_message_bytes=self.config.ws_max_size,
            budget=budget,
            image_field=IMAGE_FIELD,
            max_image_bytes=self.image_bytes,
        )

    # --- input

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
            case Input.HANDSHAKE:  # always complete: uvicorn's HTTP protocol parsed it before the upgrade
                self._input = Input.HELD
                if (request := read_handshake(data)) is not None:
                    self.handle_connect(request)
                else:
                    self._refuse_handshake()
            case Input.HELD:
                self._reader.feed(data)
                self._pause_reading()
            case Input.SKIPPED:
                self._reader.feed(data)
                self._skip_to_close()
            case Input.DISCARDED:
                self._discarded_bytes += len(data)
                if self._discarded_bytes > _MAX_DISCARDED_BYTES:
                    self.transport.pause_reading()

    def _read_frames(self) -> None:
        """Handles the fed frames up to the first message for the application's queue. Raises FrameError.

        The application handles that message before the next frame is read. Between two messages, and after
        `_MAX_FRAMES_PER_STEP` frames, the event loop serves other connections, however small the frames are.
        """
        reader = self._reader
        for _ in range(_MAX_FRAMES_PER_STEP):
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
            elif opcode == frames.OVERSIZED:
                self._queue({"type": "websocket.receive", "text": f'{{"type":"{OVERSIZED_IMAGE}"}}'})
                goes_on = False
            elif opcode == frames.CLOSE:
                self._on_close(*frames.close_payload(payload))
                goes_on = False
            else:
                if opcode == frames.PING:
                    # Replaces an earlier ping that is not answered yet, which need not be (RFC 6455 §5.5.3).
                    self._owed_pong = payload
                    self.pings += 1
                    self._send_owed_pong()
                elif opcode == frames.PONG:
                    self.handle_pong(Frame(Opcode.PONG, payload))
                goes_on = True
            if not goes_on:
                return
        self._pause_reading()
        self._read_later()

    def _on_text(self, payload: bytes) -> bool:
        """Hands a text to the sink. False where there is none or it declines, and the text is queued instead."""
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

    def _send_owed_pong(self) -> None:
        """Answers the last ping if the client reads. Pongs for one that does not would pile up in the write buffer."""
        if self._owed_pong is not None and self.writable.is_set():
            self.transport.write(frames.pong_frame(self._owed_pong))
            self._owed_pong = None

    def _pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _read_later(self) -> None:
        """Continues with the unread frames in the loop's next iteration, then resumes the transport."""
        if not self._reader.pending:
            self.read_paused = False
            self.transport.resume_reading()
        elif self._next_step is None:
            self._next_step = self.loop.call_soon(self._step)

    def _step(self) -> None:
        self._next_step = None
        if self._input is not READ or not self.queue.empty():
            return
        self._reader.budget.now_s = self.loop.time()
        try:
            self._read_frames()
        except FrameError as error:
            self._fail(error.code, error.reason)

    # --- the handshake

    def handle_connect(self, event: Request) -> None:
        """Refuses an invalid handshake itself: the text of websockets quotes the request, and with it a credential."""
        if self.conn.accept(event).status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            super().handle_connect(event)
        else:
            self._refuse_handshake()

    def _refuse_handshake(self) -> None:
        self._input = Input.DISCARDED
        refuse(self.transport, _NO_HANDSHAKE)
        self._drop_later()

    def _accepted(self) -> None:
        if self._input is Input.HELD and self.conn.state is State.OPEN:
            self._input = Input.READ
            if self.read_paused:
                self._read_later()

    # --- closing

    def _on_close(self, code: int, reason: str) -> None:
        """Answers the client's close frame with its own code and reason, and closes (RFC 6455 §5.5.1, §7.1.1)."""
        self._tell_end(code, reason)
        self._send_close(None if code == frames.NO_STATUS else code, reason)
        self._discard_input()
        self.transport.close()
        self._drop_later()

    def _fail(self, code: int, reason: str) -> None:
        """Fails the connection for invalid input (RFC 6455 §7.1.7).

        Closing at once while data of the client is on the way would reset the connection, and lose the close frame. So
        only the sending side is closed, and input is discarded until the client has closed.
        """
        log.info("websocket_failed", code=code, reason=reason)
        self._tell_end(code, reason)
        self._send_close(code, reason)
        self._linger()
        self._close_sending_side()

    def _tell_end(self, code: int, reason: str) -> None:
        self._ended_code = code
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})

    def _closed(self) -> None:
        """After the server's close frame: waits up to `_LINGER_S` for the client's."""
        self._drop_later()
        if self._input is READ:
            self._input = Input.SKIPPED
            self._linger()
            self._resume_reading()
            self._skip_to_close()
        elif self._input is Input.HELD:  # the application refused over HTTP, and the transport is closing
            self._discard_input()

    def _skip_to_close(self) -> None:
        try:
            if not self._reader.skip_to_close():
                return
        except FrameError:
            self._close_sending_side()
            return
        self._discard_input()
        self.transport.close()

    def _close_sending_side(self) -> None:
        """Closes the sending side and discards input. The client closes, or a timer drops it."""
        self._discard_input()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            with contextlib.suppress(OSError):  # the client has left meanwhile
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
        if self._next_step is not None:
            self._next_step.cancel()
            self._next_step = None
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def _linger(self) -> None:
        """Delays uvicorn's close at the application's return: at once, it would lose the close frame."""
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _drop_later(self) -> None:
        if self._drop_timer is None and not self.disconnected:
            self._drop_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def shutdown(self) -> None:
        if self._ended_code is not None:  # uvicorn would send a second close frame
            self.transport.close()
            return
        super().shutdown()
        self._discard_input()
        self._drop_later()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._drop_timer, self._next_step):
            if timer is not None:
                timer.cancel()
        self._input = Input.DISCARDED
        super().connection_lost(exc)
