"""Connections held open for nothing: heads that drip, grow or never come, and answers that nobody reads."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httptools
import pytest
import structlog
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from websockets.asyncio.client import connect

from tests.conftest import StartBroker
from tests.support.machine import retry_if_host_busy
from tests.support.serving import serve_app
from token_broker.server.http_protocol import MAX_HEAD_BYTES, BoundedHttpProtocol, bounded_http
from token_broker.server.uvicorn_options import uvicorn_options
from token_broker.server.websocket_protocol import bounded_websocket
from token_broker.settings import Settings

HEAD_TIMEOUT_S = 0.4
WAIT_S = 15  # far more than any of the limits here
GET = b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n"


async def greet(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, without reading a body; `/large` with 16 MB, `/slow` after twice the time a head may take."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(2 * HEAD_TIMEOUT_S)
        await send({"type": "websocket.send", "text": "still here"})
        await receive()
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(2 * HEAD_TIMEOUT_S)
    body = b"x" * (16_000_000 if scope["path"] == "/large" else 2)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]}
    )
    await send({"type": "http.response.body", "body": body})


@dataclass
class Peer:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        async with asyncio.timeout(WAIT_S):
            status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            return int(status.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def refusal(self) -> dict[str, Any]:
        """The problem document that is the next answer; the connection is closed behind it."""
        status, headers, body = await self.answer()
        document: dict[str, Any] = json.loads(body)
        assert headers["content-type"] == "application/problem+json"
        assert document["status"] == status
        assert document["correlation_id"] == headers["x-request-id"]
        assert await self.rest() == b""
        return document

    async def rest(self) -> bytes:
        """What still comes until the server closes."""
        try:
            async with asyncio.timeout(WAIT_S):
                return await self.reader.read()
        except ConnectionResetError:  # the server closed with data of ours unread, so TCP resets the connection
            return b""


@contextlib.asynccontextmanager
async def serving(
    protocol: type[asyncio.Protocol] | None = None, *, write_timeout_s: float = WAIT_S
) -> AsyncIterator[str]:
    bounded = bounded_http(head_timeout_s=HEAD_TIMEOUT_S, write_timeout_s=write_timeout_s)
    framed = bounded_websocket(frames_per_second=0, control_frames_per_second=0, write_timeout_s=WAIT_S)
    async with serve_app(greet, http=protocol or bounded, ws=framed) as base_url:
        yield base_url


@contextlib.asynccontextmanager
async def peer_of(base_url: str, **options: Any) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(base_url.rpartition(":")[2]), **options)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def dripping(peer: Peer, drop: bytes) -> AsyncIterator[None]:
    """Sends `drop` again and again, as slow-loris does, while the block runs."""

    async def drip() -> None:
        while True:
            peer.send(drop)
            await asyncio.sleep(HEAD_TIMEOUT_S / 8)

    task = asyncio.create_task(drip())
    try:
        yield
    finally:
        task.cancel()


async def test_dripping_head_gets_408() -> None:
    async with serving() as url, peer_of(url) as peer:
        peer.send(b"GET / HTTP/1.1\r\n")
        async with dripping(peer, b"X: y\r\n"):
            assert (await peer.refusal())["code"] == "head_timeout"


async def test_silent_connection_is_closed_silently() -> None:
    async with serving() as url, peer_of(url) as peer:
        assert await peer.rest() == b""


async def test_second_head_times_out_too() -> None:
    async with serving() as url, peer_of(url) as peer:
        peer.send(GET)
        assert (await peer.answer())[0] == 200
        peer.send(b"GET / HTTP/1.1\r\nX-Slow: ")
        async with dripping(peer, b"y"):
            assert (await peer.refusal())["code"] == "head_timeout"


@pytest.mark.slow
async def test_pipelined_head_times_out_after_answer() -> None:
    async with serving() as url, peer_of(url) as peer:
        peer.send(GET.replace(b"/", b"/slow", 1) + b"GET / HTTP/1.1\r\nX-Slow: ")
        async with dripping(peer, b"y"):
            assert (await peer.answer())[0] == 200
            assert (await peer.refusal())["code"] == "head_timeout"


@pytest.mark.parametrize("drop", [b"\r\n", b"x"], ids=["empty lines", "the rest of a body"])
async def test_dripping_after_answer_is_closed(drop: bytes) -> None:
    async with serving() as url, peer_of(url) as peer:
        length = b"Content-Length: 1000000\r\n\r\n" if drop == b"x" else b"\r\n"
        peer.send(GET.removesuffix(b"\r\n") + length)
        assert (await peer.answer())[0] == 200
        async with dripping(peer, drop):
            assert await peer.rest() == b""


async def test_answer_may_outlast_head_timeout() -> None:
    async with serving() as url, peer_of(url) as peer:
        peer.send(GET.replace(b"/", b"/slow", 1))
        assert (await peer.answer())[0] == 200
        peer.send(GET)
        assert (await peer.answer())[0] == 200


async def test_websocket_outlives_http_timeouts() -> None:
    async with serving(write_timeout_s=HEAD_TIMEOUT_S / 4) as url, connect(url.replace("http", "ws"), proxy=None) as ws:
        assert await ws.recv() == "still here"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: broker\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: broker\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEAD_BYTES // 5),
    ],
    ids=["one long header", "a long path", "many headers"],
)
async def test_too_large_head_gets_431(head: bytes) -> None:
    async with serving() as url, peer_of(url) as peer:
        peer.send(head)
        assert (await peer.refusal())["code"] == "head_too_large"


def handshake(*lines: str) -> bytes:
    shake = ("Host: broker", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    return "\r\n".join(("GET / HTTP/1.1", *shake, key, *lines, "", "")).encode()


@pytest.mark.parametrize(
    "lines",
    [
        ("Cookie: session=" + "c" * 8_700,),
        ("X-MS-CLIENT-PRINCIPAL: " + "p" * 32_000, "Cookie: " + "c" * 32_000),
        tuple(f"X-Header-{number}: {number}" for number in range(1000)),
    ],
    ids=["a large cookie", "almost all that a head may have", "many lines"],
)
async def test_handshake_takes_what_http_takes(lines: tuple[str, ...]) -> None:
    head = handshake(*lines)
    assert len(head) < MAX_HEAD_BYTES
    async with serving() as url, peer_of(url) as over_http, peer_of(url) as over_websocket:
        over_http.send("\r\n".join(("GET / HTTP/1.1", "Host: broker", *lines, "", "")).encode())
        assert (await over_http.answer())[0] == 200
        over_websocket.send(head)
        assert (await over_websocket.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_refused_heads_are_logged() -> None:
    secret = "z" * MAX_HEAD_BYTES  # no digit of an id
    heads = {
        "head_too_large": [
            handshake(f"Cookie: {secret}"),
            handshake(f"Cookie: {secret}").replace(b"Upgrade: websocket\r\n", b""),
        ],
        "malformed_handshake": [handshake("Content-Length: 5").replace(b"13", b"8")],
        "malformed_request": [handshake("Host: another")],
    }
    for code, each in heads.items():
        for head in each:
            async with serving() as url, peer_of(url) as peer:
                with structlog.testing.capture_logs() as logged:
                    peer.send(head)
                    document = await peer.refusal()
            assert document["code"] == code
            (line,) = logged
            assert (line["event"], line["code"]) == ("request_refused", code)
            assert line["correlation_id"] == document["correlation_id"]
            assert "zzz" not in str(line)


async def test_endless_header_gets_431() -> None:
    async with serving() as url, peer_of(url) as peer:
        peer.send(b"GET / HTTP/1.1\r\nX: ")
        with contextlib.suppress(ConnectionError):  # it is closed under what is still being sent
            for _ in range(100):
                peer.send(b"x" * 65_536)
                await peer.writer.drain()
                if b"431" in await _what_came(peer):
                    break
            else:
                raise AssertionError("six megabytes of one header were taken")


async def _what_came(peer: Peer) -> bytes:
    try:
        async with asyncio.timeout(0.02):
            return await peer.reader.read(1000)
    except TimeoutError:
        return b""


async def test_largest_head_passes_with_any_body() -> None:
    async with serving() as url, peer_of(url) as peer:
        long = b"X: " + b"x" * (MAX_HEAD_BYTES - 100) + b"\r\n"
        body = b"y" * (2 * MAX_HEAD_BYTES)
        for _ in range(2):
            peer.send(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), long, body))
            assert (await peer.answer())[0] == 200


async def test_non_http_gets_400() -> None:
    async with serving() as url, peer_of(url) as peer:
        peer.send(b"\x16\x03\x01 what a TLS client says\r\n\r\n")
        assert (await peer.refusal())["code"] == "malformed_request"


@pytest.mark.parametrize(
    ("version", "codings", "status"),
    [
        ("1.1", ["chunked"], 200),
        ("1.1", ["CHUNKED"], 200),
        ("1.1", ["chunked", "chunked"], 400),
        ("1.1", ["gzip", "chunked"], 400),  # the parser joins the lines and goes by the last coding
        ("1.1", ["chunked", "identity"], 400),
        ("1.1", ["gzip, chunked"], 400),
        ("1.1", ["", "chunked"], 400),
        ("1.0", ["chunked"], 400),  # RFC 9112 §6.1: the framing of such a message is faulty
    ],
)
async def test_transfer_encoding_is_chunked_once(version: str, codings: list[str], status: int) -> None:
    lines = "".join(f"Transfer-Encoding: {coding}\r\n" for coding in codings)
    async with serving() as url, peer_of(url) as peer:
        peer.send(f"POST / HTTP/{version}\r\nHost: broker\r\n{lines}\r\n0\r\n\r\n".encode())
        assert (await peer.answer())[0] == status


@pytest.mark.slow
@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"], ids=["kept alive", "to be closed"])
async def test_client_that_reads_nothing_is_dropped(close: bytes) -> None:
    async with serving(write_timeout_s=0.2) as url, peer_of(url, limit=1024) as peer:
        peer.send(b"GET /large HTTP/1.1\r\n%b\r\n" % close)
        await peer.reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(1)  # nothing is read meanwhile, which is what is tried
        with contextlib.suppress(ConnectionError):
            assert len(await peer.rest()) < 16_000_000


@pytest.mark.slow
@retry_if_host_busy(tries=3)
async def test_slow_reader_gets_whole_answer() -> None:
    async with serving(write_timeout_s=0.5) as url, peer_of(url, limit=1024) as peer:
        peer.send(b"GET /large HTTP/1.1\r\nConnection: close\r\n\r\n")
        await peer.reader.readuntil(b"\r\n\r\n")
        taken, began_s = 0, time.monotonic()
        while chunk := await peer.reader.read(160_000):
            taken += len(chunk)
            if time.monotonic() < began_s + 1:
                await asyncio.sleep(0.05)
        assert taken == 16_000_000


async def test_idle_connection_is_kept_as_set(start_broker: StartBroker) -> None:
    broker = await start_broker(None, keep_alive_s=0.1)
    async with peer_of(broker.base_url) as peer:
        peer.send(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await peer.answer())[0] == 200
        assert await peer.rest() == b""


async def test_kept_connection_takes_another_request(start_broker: StartBroker) -> None:
    broker = await start_broker(None, head_timeout_s=0.1)
    async with peer_of(broker.base_url) as peer:
        for _ in range(2):
            peer.send(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await peer.answer())[0] == 200
            await asyncio.sleep(0.3)


def test_connection_is_kept_longer_than_by_proxies() -> None:
    """What closes first loses a request that is on its way: nginx keeps one for 60 s, Azure's ingresses for 240."""
    options = uvicorn_options(Settings(_env_file=None))
    assert uvicorn.Config(greet, **options).timeout_keep_alive > 240


# What the protocol leans on in uvicorn and httptools.


@pytest.mark.slow
async def test_plain_uvicorn_waits_for_a_head_forever() -> None:
    async with serving(HttpToolsProtocol) as url, peer_of(url) as silent, peer_of(url) as begun:
        begun.send(b"GET / HTTP/1.1\r\n")
        for peer in (silent, begun):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(peer.reader.read(1), 2 * HEAD_TIMEOUT_S)


def test_uvicorn_accepts_a_protocol_class() -> None:
    chosen = bounded_http(head_timeout_s=1, write_timeout_s=2)
    config = uvicorn.Config(greet, http=chosen)
    config.load()
    assert config.http_protocol_class is chosen
    assert issubclass(chosen, BoundedHttpProtocol)


def test_httptools_wraps_a_callbacks_error() -> None:
    class Refusing:
        def on_header(self, name: bytes, value: bytes) -> None:
            raise ValueError("no")

    with pytest.raises(httptools.HttpParserError):
        httptools.HttpRequestParser(Refusing()).feed_data(GET)


@pytest.mark.parametrize(
    "name",
    [
        "connection_made", "connection_lost", "data_received", "on_message_begin", "on_url", "on_header",
        "on_headers_complete", "on_response_complete", "send_400_response", "resume_writing",
        "handle_websocket_upgrade",
    ],
)  # fmt: skip
def test_overridden_methods_exist_in_uvicorn(name: str) -> None:
    assert name in vars(HttpToolsProtocol)
    assert name in vars(BoundedHttpProtocol)
