"""Plays one case over a socket of its own, and judges what comes back as Autobahn does."""

import contextlib
import socket
import time
from dataclasses import dataclass, field

from tests.relay.autobahn.cases import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    Case,
    Event,
    Pause,
    Ping,
    Send,
    close,
    frame,
)

__all__ = ["FAILED", "INFORMATIONAL", "NON_STRICT", "OK", "Verdict", "play"]

OK, NON_STRICT, INFORMATIONAL, FAILED = "OK", "NON-STRICT", "INFORMATIONAL", "FAILED"
_PATIENCE_S = 15.0
_PAUSE_S = 0.1
_NAMES = {TEXT: "text", BINARY: "binary", PING: "ping", PONG: "pong"}


@dataclass(frozen=True)
class Verdict:
    """`behavior` is what came back, `closing` how it ended: each as Autobahn calls it. `why` explains a failure."""

    behavior: str
    closing: str
    why: str = ""

    @property
    def passed(self) -> bool:
        return FAILED not in {self.behavior, self.closing}


@dataclass
class Connection:
    """What has come over one WebSocket. `ended`: the server has closed it."""

    socket: socket.socket
    events: list[Event] = field(default_factory=list)
    close_code: int | None = None
    close_came: bool = False
    close_sent: bool = False
    closed_first: str = ""  # who has sent its close frame first
    ended: bool = False
    fault: str = ""
    _data: bytearray = field(default_factory=bytearray)
    _message: bytearray | None = None
    _kind: str = ""

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the server has gone: reading tells
            self.socket.sendall(data)

    def close(self) -> None:
        if not self.close_sent:
            self.close_sent = True
            self.closed_first = self.closed_first or "client"
            self.send(close())

    def read(self, until: int | None, within_s: float) -> None:
        """Reads until there are so many events, to the end with None, or as long as is said."""
        deadline_s = time.monotonic() + within_s
        while not self.ended and (until is None or len(self.events) < until):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return
            self.socket.settimeout(left_s)
            try:
                data = self.socket.recv(1 << 20)
            except TimeoutError:
                return
            except OSError:
                data = b""
            if not data:
                self.ended = True
                return
            self._data += data
            self._parse()

    def _parse(self) -> None:
        data, at = self._data, 0
        while len(data) - at >= 2:
            size, head = data[at + 1] & 0x7F, 2
            if data[at + 1] & 0x80 or data[at] & 0x70:
                self.fault = "a masked frame, or one with reserved bits"
            if size >= 126:
                head += 2 if size == 126 else 8
                size = int.from_bytes(data[at + 2 : at + head], "big")
            if len(data) - at < head + size:
                break
            self._take(data[at] & 0x0F, bytes(data[at + head : at + head + size]), fin=data[at] >= 0x80)
            at += head + size
        del data[:at]

    def _take(self, opcode: int, payload: bytes, *, fin: bool) -> None:
        if self.close_came:
            self.fault = "a frame after the close frame"
        elif opcode == CLOSE:
            self.close_came = True
            self.close_code = int.from_bytes(payload[:2], "big") if payload else None
            self.closed_first = self.closed_first or "server"
        elif opcode in (PING, PONG):
            self.events.append((_NAMES[opcode], payload))
        else:
            if opcode != CONT:
                self._kind, self._message = _NAMES[opcode], bytearray()
            assert self._message is not None, "a continuation of nothing"
            self._message += payload
            if fin:
                self.events.append((self._kind, bytes(self._message)))
                self._message = None


def play(case: Case, port: int, *, patience_s: float = _PATIENCE_S) -> Verdict:
    """Plays the case against the echo server at that port, which has so long for what it has to do at the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _opened(sock)
        for step in case.steps:
            if connection.ended or (connection.close_came and not case.closing):
                break
            _take_step(connection, step)
        if case.closing:
            connection.close_sent = True
            connection.closed_first = "client"
        elif case.ours:
            connection.read(len(case.expected), patience_s)
            connection.close()
        connection.read(None, patience_s)
    return judge(case, connection)


def _opened(sock: socket.socket) -> Connection:
    sock.sendall(
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    )
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(1)
        assert data, "no handshake"
        head += data
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert b"sec-websocket-extensions" not in head.lower()
    return Connection(sock)


def _take_step(connection: Connection, step: Send | Pause | Ping) -> None:
    match step:
        case Send(data=data, chop=0):
            _send_reading(connection, data)
        case Send(data=data, chop=chop):
            for at in range(0, len(data), chop):
                connection.send(data[at : at + chop])
        case Pause(name=name):
            connection.read(None, _PAUSE_S)
            if not connection.ended and not connection.close_came:
                connection.events.append(("timeout", name))
        case Ping(message=(kind, payload), count=count):
            data = frame(TEXT if kind == "text" else BINARY, payload)
            for number in range(count):
                connection.send(data)
                connection.read(number + 1, _PATIENCE_S)


def _send_reading(connection: Connection, data: bytes) -> None:
    """Sends all, and reads meanwhile where the server takes no more before it has got rid of something."""
    view = memoryview(data)
    deadline_s = time.monotonic() + _PATIENCE_S
    while view and not connection.ended and time.monotonic() < deadline_s:
        connection.socket.settimeout(0.05)
        try:
            view = view[connection.socket.send(view) :]
        except TimeoutError:
            connection.read(None, 0.05)
        except OSError:
            return


def judge(case: Case, connection: Connection) -> Verdict:
    closing, why = _closing(case, connection)
    events = tuple(connection.events)
    if case.informational:
        return Verdict(INFORMATIONAL, closing, why)
    if events == case.expected:
        return Verdict(OK, closing, why)
    if events == case.lenient:
        return Verdict(NON_STRICT, closing, why)
    return Verdict(FAILED, closing, why or f"received {_short(events)} instead of {_short(case.expected)}")


def _closing(case: Case, connection: Connection) -> tuple[str, str]:
    if connection.fault:
        return FAILED, connection.fault
    if not connection.ended:
        return FAILED, "the server did not close the connection"
    if connection.closed_first != ("client" if case.ours else "server"):
        return FAILED, "the wrong side closed"
    if case.clean and not connection.close_came:
        return FAILED, "no close frame came"
    if connection.close_came and connection.close_code not in (case.codes or (None,)):
        return FAILED, f"closed with {connection.close_code} instead of {case.codes}"
    return OK, ""


def _short(events: tuple[Event, ...]) -> list[str]:
    return [f"{kind} {payload[:20]!r} ({len(payload)})" for kind, payload in events[:5]]
