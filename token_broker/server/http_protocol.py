"""Uvicorn's HTTP protocol with the limits that uvicorn leaves open.

Uvicorn waits without limit for a request's first byte and for the rest of its head. Any byte stops its keep-alive
timer, and an answer that nobody reads stays in memory. This protocol bounds the time and the size of a head, and drops
a client that does not read its answer. The application bounds bodies; this protocol refuses bodies in tiny chunks.

It also refuses what a proxy in front could read otherwise (request smuggling): two Host headers, a Transfer-Encoding
other than one `chunked` (RFC 9112 §3.2, §6.1), and trailers, which uvicorn would add to the headers.
"""

import asyncio
import json
import re
from http import HTTPStatus
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from token_broker.web.requests import Problem, uuid7

__all__ = ["MAX_HEAD_BYTES", "MAX_PIPELINED", "BoundedHttpProtocol", "bounded_http", "refuse"]

log = structlog.get_logger("token_broker.http")

MAX_HEAD_BYTES = 65_536
# Requests that wait for the answer to an earlier one. One read can hold thousands; browsers do not pipeline at all.
MAX_PIPELINED = 16
# Each chunk costs a callback, so a body of one-byte chunks would cost far more CPU than its size suggests. The first
# chunks may have any size; after them the mean size of all has to reach the minimum.
_FREE_CHUNKS = 4_096
_MIN_MEAN_CHUNK_BYTES = 64
_LINE_OVERHEAD_BYTES = 4  # ": " and CRLF
_MAX_LENGTH_DIGITS = 20  # enough for 64 bits; Python's int() raises above 4,300 digits
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 408 where a head takes longer than `head_timeout_s`, and 431 where it exceeds `MAX_HEAD_BYTES`.

    A head in pieces may exceed that size by one read. A connection on which no head has begun is closed silently. A
    connection is aborted when its client reads nothing of its answer for `write_timeout_s`.
    """

    head_timeout_s: float = 10
    write_timeout_s: float = 10

    _head_timer: asyncio.TimerHandle | None = None  # runs while a head is expected or incomplete
    _write_timer: asyncio.TimerHandle | None = None  # runs until the connection closes or becomes a WebSocket
    _has_drained = False  # whether the write buffer drained since the last check
    _in_head = False
    _head_bytes = 0  # URL and headers that the parser has reported
    _unreported_bytes = 0  # reads that held only a part of this head: the parser reports a header when it is complete
    _too_many_pipelined = False
    _body: list[bytes]  # the body's chunks of this read
    _body_chunks = 0
    _body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._body = []
        self._expect_head()
        self._watch_writing(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._idle:
            # Not in `on_message_begin`: the rest of an unread body, or blank lines, would keep the connection for ever.
            self._expect_head()
        was_in_head = self._in_head
        super().data_received(data)
        self._hand_over_body()
        if was_in_head and self._in_head:
            self._unreported_bytes += len(data)
            if self._unreported_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                refuse(self.transport, _head_too_large())

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._too_many_pipelined = True
            raise _malformed()  # stops the parser; uvicorn then calls `send_400_response`
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._unreported_bytes = 0
        self._body_chunks = self._body_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Collects the chunks of one read, because handing each one over would wake the application each time."""
        self._body_chunks += 1
        self._body_bytes += len(body)
        if self._body_chunks > _FREE_CHUNKS and self._body_bytes < self._body_chunks * _MIN_MEAN_CHUNK_BYTES:
            raise _malformed()
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._hand_over_body()
        super().on_message_complete()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + _LINE_OVERHEAD_BYTES)
        if not self._in_head:
            return  # a trailer: uvicorn would add it to the headers, past a proxy that strips headers of this name
        super().on_header(name, value)
        if len(value) > _MAX_LENGTH_DIGITS and name.lower() == b"content-length":
            raise _malformed()

    def on_headers_complete(self) -> None:
        """Ends the head. Refuses framing or a host that two parsers could read differently."""
        self._in_head = False
        self._stop_head_timer()
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        # The parser joins several lines and goes by the last coding. HTTP/1.0 has no transfer codings.
        if codings and (codings != [b"chunked"] or self.parser.get_http_version() == "1.0"):
            raise _malformed()
        if sum(name == b"host" for name, _ in self.headers) > 1:
            raise _malformed()
        if not self.url.startswith((b"/", b"*")):
            if (absolute := _ABSOLUTE_FORM.match(self.url)) is None:
                raise _malformed()
            # RFC 9112 §3.2.2: the host of a URL in absolute form replaces that of the Host header.
            self.headers[:] = [(b"host", absolute[1]), *(item for item in self.headers if item[0] != b"host")]
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_head and self._idle:  # the next head began while the application made this answer
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        """Answers a parser error as a problem document. `msg` is uvicorn's generic text."""
        del msg
        if self._too_many_pipelined:  # earlier requests still await answers: the client would match the 400 to one
            log.info("connection_closed", why="too many pipelined requests")
            self.transport.close()
            return
        refuse(self.transport, _head_too_large() if self._head_bytes > MAX_HEAD_BYTES else _malformed())

    def resume_writing(self) -> None:
        self._has_drained = True
        super().resume_writing()

    def handle_websocket_upgrade(self) -> None:
        self._stop_write_timer()  # a WebSocket has a stall timer of its own
        super().handle_websocket_upgrade()

    def _hand_over_body(self) -> None:
        if self._body:
            body = b"".join(self._body)
            self._body.clear()
            super().on_body(body)

    @property
    def _idle(self) -> bool:
        """Whether the application works on no request of this connection."""
        if self.cycle is None:  # before the first request, although uvicorn's types exclude it
            return True
        return self.cycle.response_complete and not self.pipeline

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()  # stops the parser; uvicorn then calls `send_400_response`

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_overdue)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._in_head:
            refuse(
                self.transport, Problem(408, "head_timeout", f"Send the whole head within {self.head_timeout_s:g} s.")
            )
        else:
            self.transport.close()

    def _watch_writing(self, buffered_bytes: int) -> None:
        self._has_drained = False
        self._write_timer = self.loop.call_later(self.write_timeout_s, self._check_writing, buffered_bytes)

    def _check_writing(self, bytes_before: int) -> None:
        """Aborts where the client read nothing since the last check, even while the transport is closing."""
        bytes_now = self.transport.get_write_buffer_size()
        if 0 < bytes_before <= bytes_now and not self._has_drained:
            self._write_timer = None
            self.transport.abort()
        else:
            self._watch_writing(bytes_now)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def refuse(transport: asyncio.Transport, problem: Problem) -> None:
    """Answers a request that the application never sees with `problem`, and closes.

    Logs it, since no middleware does. The head is left out of the log: it may hold a credential.
    """
    request_id = uuid7()
    log.info("request_refused", code=problem.code, status=problem.status, correlation_id=request_id)
    body = json.dumps(problem.document(request_id), separators=(",", ":")).encode()
    head = {
        **problem.headers,
        "content-type": "application/problem+json",
        "content-length": len(body),
        "cache-control": "no-store",
        "x-request-id": request_id,
        "connection": "close",
    }
    lines = [f"{name}: {value}\r\n".encode() for name, value in head.items()]
    transport.write(b"".join([STATUS_LINE[problem.status], *lines, b"\r\n", body]))
    transport.close()


def bounded_http(*, head_timeout_s: float, write_timeout_s: float) -> type[BoundedHttpProtocol]:
    """A protocol class with these limits, for `uvicorn.Config(http=…)`, which instantiates it itself."""
    limits: dict[str, Any] = {"head_timeout_s": head_timeout_s, "write_timeout_s": write_timeout_s}
    return type(BoundedHttpProtocol.__name__, (BoundedHttpProtocol,), limits)


def _malformed() -> Problem:
    return Problem(400, "malformed_request", "Send a request that is well-formed HTTP/1.1.")


def _head_too_large() -> Problem:
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return Problem(status, "head_too_large", f"Send a request line and headers of {MAX_HEAD_BYTES} bytes at most.")
