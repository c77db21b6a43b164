"""Uvicorn's HTTP protocol, held to limits that uvicorn leaves open: a connection can't be kept for nothing.

Uvicorn waits for ever for a request's first byte and for the rest of its head, forgets its keep-alive timer with any
byte that comes, and keeps an answer that nobody reads. Here a head has to be complete within a time and a size, and a
client has to take what it asked for. Bodies are the application's to bound; here they may not come in crumbs. A
connection that pipelines more than `MAX_PIPELINED` requests is closed: one read can hold thousands of them. Trailers
are ignored: uvicorn would add them to the headers, past whatever a proxy in front takes out of those.

A head also says in one way which host it is for (RFC 9112 §3.2): not in two Host headers, and a whole URL in the
request line counts before Host.
"""

import asyncio
import json
import re
from http import HTTPStatus
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from token_broker.web.ids import uuid7
from token_broker.web.problems import Problem

__all__ = ["MAX_HEAD_BYTES", "MAX_PIPELINED", "BoundedHttpProtocol", "bounded_http", "raw_answer"]

log = structlog.get_logger("token_broker.http")

MAX_HEAD_BYTES = 65_536
MAX_PIPELINED = 16  # requests that wait for the answer before them: no browser sends any
# A body may come in this many pieces of any size; of more, each has so many bytes in the mean.
_FEW_PIECES = 4_096
_LEAST_PIECE_BYTES = 64
_LINE_END_BYTES = 4  # ": " and CRLF
_MAX_LENGTH_DIGITS = 20  # what 64 bits take; Python refuses to read more than 4,300
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 408 where a head takes longer than `head_timeout_s`, 431 where it is larger than `MAX_HEAD_BYTES` (one
    that comes in pieces may be a read larger). A connection on which no head was begun is closed without a word, one
    whose client takes none of its answer for `write_timeout_s` is dropped.
    """

    head_timeout_s: float = 10
    write_timeout_s: float = 10

    _head_timer: asyncio.TimerHandle | None = None  # runs while a head is waited for, from its first byte or earlier
    _write_timer: asyncio.TimerHandle | None = None  # runs as long as the connection is HTTP's
    _took_some = False  # since the last look at what waits to be written
    _in_head = False
    _head_bytes = 0  # of what the parser has told of
    _unfinished_bytes = 0  # of reads that brought nothing but a part of this head
    _too_many_pipelined = False
    _body: list[bytes]  # what this read has brought of a body
    _body_pieces = 0
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
            self._expect_head()  # whatever comes, if only the rest of a body that was answered already
        was_in_head = self._in_head
        super().data_received(data)
        self._hand_over_body()
        if was_in_head and self._in_head:
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(_head_too_large())

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._too_many_pipelined = True
            raise _malformed()  # the parser stops at it, and uvicorn calls `send_400_response`
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._unfinished_bytes = 0
        self._body_pieces = self._body_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Gathers what one read brings: a body in chunks of a byte each would cost a wake-up a byte."""
        self._body_pieces += 1
        self._body_bytes += len(body)
        if self._body_pieces > _FEW_PIECES and self._body_bytes < self._body_pieces * _LEAST_PIECE_BYTES:
            raise _malformed()
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._hand_over_body()
        super().on_message_complete()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + _LINE_END_BYTES)
        if not self._in_head:
            return  # a trailer: nothing here wants one, and uvicorn would take it for a header that the proxy let pass
        super().on_header(name, value)
        if len(value) > _MAX_LENGTH_DIGITS and name.lower() == b"content-length":
            raise _malformed()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        self._settle_host()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_head and self._idle:  # the next head was begun while this answer was made
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        """What the parser will not take, as all other refusals are told; `msg` says no more than that."""
        del msg
        if self._too_many_pipelined:  # answers to what came before are under way: a refusal would pass for one of them
            log.info("connection_closed", why="too many pipelined requests")
            self.transport.close()
            return
        self._refuse(_head_too_large() if self._head_bytes > MAX_HEAD_BYTES else _malformed())

    def resume_writing(self) -> None:
        self._took_some = True
        super().resume_writing()

    def handle_websocket_upgrade(self) -> None:
        self._stop_write_timer()  # from here on the connection is the WebSocket's
        super().handle_websocket_upgrade()

    def _hand_over_body(self) -> None:
        if self._body:
            body = b"".join(self._body)
            self._body.clear()
            super().on_body(body)

    @property
    def _idle(self) -> bool:
        """Whether the application has nothing to do with this connection just now."""
        if self.cycle is None:  # as it is before the first request, whatever uvicorn's types say
            return True
        return self.cycle.response_complete and not self.pipeline

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()  # the parser stops at it, and uvicorn calls `send_400_response`

    def _settle_host(self) -> None:
        """Puts the host of a whole URL in the place of the Host header's; refuses two of these."""
        if sum(name == b"host" for name, _ in self.headers) > 1:
            raise _malformed()
        if self.url.startswith((b"/", b"*")):
            return
        if (absolute := _ABSOLUTE_FORM.match(self.url)) is None:
            raise _malformed()
        self.headers[:] = [(b"host", absolute[1]), *(item for item in self.headers if item[0] != b"host")]

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
            self._refuse(Problem(408, "head_timeout", f"Send the whole head within {self.head_timeout_s:g} s."))
        else:
            self.transport.close()

    def _watch_writing(self, waiting_bytes: int) -> None:
        self._took_some = False
        self._write_timer = self.loop.call_later(self.write_timeout_s, self._look_at_writing, waiting_bytes)

    def _look_at_writing(self, waited_bytes: int) -> None:
        """Drops a client that took nothing since the last look, also one that is being closed politely."""
        waiting_bytes = self.transport.get_write_buffer_size()
        if 0 < waited_bytes <= waiting_bytes and not self._took_some:
            self._write_timer = None
            self.transport.abort()
        else:
            self._watch_writing(waiting_bytes)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _refuse(self, problem: Problem) -> None:
        """Answers by ourselves, since no application was asked, and closes."""
        self.transport.write(raw_answer(problem))
        self.transport.close()


def raw_answer(problem: Problem) -> bytes:
    """The whole answer that tells of `problem` and closes, for connections on which no application is asked."""
    request_id = uuid7()
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
    return b"".join([STATUS_LINE[problem.status], *lines, b"\r\n", body])


def bounded_http(*, head_timeout_s: float, write_timeout_s: float) -> type[BoundedHttpProtocol]:
    """The protocol with these limits, for `uvicorn.Config(http=…)`, which takes a class and makes its instances."""
    limits: dict[str, Any] = {"head_timeout_s": head_timeout_s, "write_timeout_s": write_timeout_s}
    return type(BoundedHttpProtocol.__name__, (BoundedHttpProtocol,), limits)


def _malformed() -> Problem:
    return Problem(400, "malformed_request", "Send a request that is well-formed HTTP/1.1.")


def _head_too_large() -> Problem:
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return Problem(status, "head_too_large", f"Send a request line and headers of {MAX_HEAD_BYTES} bytes at most.")
