"""The WebSocket to Azure, on picows: a queue of frames, back-pressure both ways, bounded at every point.

picows has traps. Each is handled here and covered by a contract test:

- it follows five redirects by default, the key in their headers: `max_redirects=0`;
- its auto-ping closes a healthy peer while reading is paused: pings are ours (`ping`), and stop then;
- its auto-pong answers pings without limit, even if the peer reads no pongs: pongs are ours (`_pay_pong`);
- `max_frame_size` limits one frame, not a fragmented message: `_on_fragment` sums over fragments;
- its logger prints the handshake's headers, the key included, at its lowest level: ours is fixed above that;
- cancelling `ws_connect` during the handshake leaves the connection open: the socket is ours, and is shut down;
- where the peer closes during the handshake, it returns without a listener instead of raising;
- its read buffer doubles whenever one read fills it, and never shrinks: the kernel's receive buffer is kept small.

Data frames have no budget here, unlike a client's. Azure sends an answer faster than it is played, minutes of it in
seconds, and that is legitimate: reading pauses, so what the client does not accept yet waits in the kernel. Control
frames and fragments of one message are counted, since nobody needs many; the connection ends where Azure sends more.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from aiohttp.abc import ResolveResult
from picows import (
    WSCloseCode,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    ws_connect,
)

from strategies.outbound_proxy import OutboundProxy
from token_broker.relay.azure.dns_cache import DnsCache
from token_broker.server.client_wire import IMAGE_FIELD
from token_broker.server.frames import FrameBudget, FrameError

__all__ = ["CLOSED_BY_AZURE", "CLOSED_BY_BROKER", "AzureSocket", "connect"]

CLOSED_BY_AZURE = "Azure closed the connection"
CLOSED_BY_BROKER = "closed by the broker"

# Reading pauses above the first and resumes below the second: how much of Azure's frames one talk may hold.
_QUEUE_HIGH_BYTES = 262_144
_QUEUE_LOW_BYTES = 65_536
_FRAME_BYTES = 64  # memory of a queued frame beside its text: an empty one is not free
# What one read may add beyond that: picows delivers all of it, paused or not. Only a flood of tiny frames exceeds it.
_QUEUE_BEYOND_BYTES = 1_048_576
_FRAGMENTS_AT_MOST = 16_384  # of one message: 64 bytes each of the largest
# The default for clients too. Azure pings a few times a minute.
_CONTROL_FRAMES_PER_SECOND = 20
_RECEIVE_BUFFER_BYTES = 131_072
# picows doubles this until a message fits; 20 KiB · 2⁶ is just enough for the largest message of 1 MiB. Where Azure
# repeats an image of 4 MiB it is 5 MiB, for that talk.
_FIRST_READ_BUFFER_BYTES = 20_480
_GRACEFUL_CLOSE_S = 1.0
_TEXT = WSMsgType.TEXT  # looked up once: an enum's members cost a call


class AzureSocket(WSListener):
    """One open WebSocket to Azure. Its messages wait in `frames` until the talk takes them.

    `failure` says why the connection is over, in our own words; None while it is open.
    """

    def __init__(self, *, max_message_bytes: int, max_image_bytes: int = 0) -> None:
        self.frames: deque[str] = deque()
        self.failure: str | None = None
        self.writable = True
        self.paused = False
        self.answer_headers: Mapping[str, str] = {}  # the handshake's
        self.answered_at_s = 0.0  # of our clock, unix
        self._loop = asyncio.get_running_loop()
        self._max_message_bytes = max_message_bytes
        self._max_image_bytes = max(max_image_bytes, max_message_bytes)  # of a message with an image
        self._transport: WSTransport | None = None
        self._message: bytearray | None = None  # a fragmented message as far as it has arrived
        self._fragments = 0  # of that message
        self._budget = FrameBudget(0, _CONTROL_FRAMES_PER_SECOND, self._loop.time())
        self._owed_pong: bytes | None = None  # the last ping's payload, while Azure does not read
        self._refused = False
        self._sink: Callable[[bytes], bool] | None = None
        self._queued_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self.on_end: Callable[[str], None] | None = None  # gets `failure`, once
        self.on_late: Callable[[str], None] | None = None  # gets what nobody took, or comes while the socket is closed
        self._waiters: list[asyncio.Future[None]] = []
        self._awaiting_pong = False
        self._gone = asyncio.Event()

    # --- for the talk

    def take(self) -> str:
        """The next message; there must be one."""
        text = self.frames.popleft()
        self._queued_bytes -= len(text) + _FRAME_BYTES
        if self.paused and self._queued_bytes <= _QUEUE_LOW_BYTES:
            self._resume()
        return text

    async def wait(self) -> None:
        """Returns when a message is there, or when none will come any more (`failure` is set)."""
        if not self.frames and self.failure is None:
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    def offer_to(self, sink: Callable[[bytes], bool] | None) -> None:
        """Offers each message to `sink` while the talk waits for one; where it returns False, the message is queued."""
        self._sink = sink

    def put(self, text: str) -> None:
        """Queues a message for the client: Azure's, or an event of the broker's own that comes after those."""
        self.frames.append(text)
        self._queued_bytes += len(text) + _FRAME_BYTES
        if self._queued_bytes > _QUEUE_HIGH_BYTES and not self.paused:
            self._pause()
        if (reader := self._reader) is not None and not reader.done():
            reader.set_result(None)

    def put_first(self, texts: Sequence[str]) -> None:
        """Queues messages before all that wait."""
        self.frames.extendleft(reversed(texts))
        self._queued_bytes += sum(map(len, texts)) + len(texts) * _FRAME_BYTES

    def send(self, text: str | bytes) -> None:
        """Sends one event; after the end it is dropped. Await `drained` where `writable` is False afterwards."""
        assert self._transport is not None  # noqa: S101  # set before `connect` returns
        self._transport.send(_TEXT, text)

    async def drained(self) -> None:
        """Returns when Azure accepts data again, or is gone."""
        while not self.writable and self.failure is None:
            await self._change()

    async def has_room(self) -> None:
        """Returns when the queue to the client has room. Await it after an answer of the broker's own was queued."""
        while self.paused and self.failure is None:
            await self._change()

    def ping(self) -> bool:
        """Pings Azure; False where the last ping was not answered. While reading is paused no ping is sent: its pong
        would not be read.
        """
        assert self._transport is not None  # noqa: S101
        if self.paused:
            self._awaiting_pong = False
            return True
        if self._awaiting_pong:
            return False
        self._awaiting_pong = True
        self._transport.send_ping()
        return True

    async def aclose(self, *, graceful: bool = True) -> None:
        """Closes the socket: after a closing handshake of at most a second, or at once."""
        transport = self._transport
        if transport is None:
            return
        self._end(CLOSED_BY_BROKER)
        if self.on_late is not None:
            for text in self.frames:
                self.on_late(text)
        self.frames.clear()
        self._queued_bytes = 0
        try:
            if graceful and not self._refused and not transport.is_disconnected:
                self._resume()
                transport.send_close(WSCloseCode.OK)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GRACEFUL_CLOSE_S):
                        await self._gone.wait()
        finally:
            transport.disconnect(graceful=False)
        # Raises what made picows drop the connection: retrieved here, asyncio does not log it as never retrieved.
        with contextlib.suppress(Exception):
            await transport.wait_disconnected()

    # --- for picows

    def on_ws_connected(self, transport: WSTransport) -> None:
        """picows: the handshake is done."""
        self._transport = transport
        self.answer_headers, self.answered_at_s = transport.response.headers, time.time()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """picows: a frame has arrived."""
        if self._refused:  # picows has read more already, and delivers every frame of it
            return
        self._awaiting_pong = False
        kind = frame.msg_type
        if self.failure is not None and kind != WSMsgType.CLOSE:
            if self.on_late is not None and kind == _TEXT and frame.fin:
                self.on_late(frame.get_payload_as_bytes().decode(errors="replace"))
            return
        if kind == _TEXT and frame.fin and self._message is None:
            self._on_message(frame.get_payload_as_bytes())
            return
        match kind:
            case WSMsgType.TEXT | WSMsgType.CONTINUATION:
                self._on_fragment(frame)
            case WSMsgType.CLOSE:
                self._end(CLOSED_BY_AZURE)
                transport.send_close(frame.get_close_code())
                transport.disconnect()
            case WSMsgType.BINARY:
                self._refuse(WSCloseCode.UNSUPPORTED_DATA, "Azure sent something that is no event")
            case _:
                self._budget.now_s = self._loop.time()
                try:
                    self._budget.spend_control()
                except FrameError:
                    self._refuse(WSCloseCode.POLICY_VIOLATION, "Azure sent too many control frames")
                    return
                if kind == WSMsgType.PING:
                    self._owed_pong = frame.get_payload_as_bytes()  # only the latest needs a pong (RFC 6455 §5.5.3)
                    self._pay_pong()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """picows: the connection is gone."""
        del transport
        self._end("the connection to Azure broke")
        self._gone.set()

    def pause_writing(self) -> None:
        """picows: Azure does not read, and the transport's buffer is full."""
        self.writable = False

    def resume_writing(self) -> None:
        """picows: Azure reads again."""
        self.writable = True
        self._pay_pong()
        self._wake()

    # --- inside

    def _pay_pong(self) -> None:
        """Answers the latest ping if Azure reads; otherwise pongs would pile up in the transport."""
        if self._owed_pong is not None and self.writable and self.failure is None:
            assert self._transport is not None  # noqa: S101  # a ping came over it
            self._transport.send_pong(self._owed_pong)
            self._owed_pong = None

    def _on_fragment(self, frame: WSFrame) -> None:
        if (frame.msg_type == WSMsgType.TEXT) != (self._message is None):
            self._refuse(WSCloseCode.PROTOCOL_ERROR, "Azure sent something that is no event")
            return
        if self._message is None:
            self._message = bytearray()
            self._fragments = 0
        message = self._message
        self._fragments += 1
        if len(message) + frame.payload_size > self._max_image_bytes or self._fragments > _FRAGMENTS_AT_MOST:
            self._refuse(WSCloseCode.MESSAGE_TOO_BIG, "Azure sent a message that is too large")
            return
        message += frame.get_payload_as_memoryview()
        if frame.fin:
            self._message = None
            self._on_message(bytes(message))

    def _on_message(self, payload: bytes) -> None:
        if len(payload) > self._max_message_bytes and IMAGE_FIELD not in payload:
            self._refuse(WSCloseCode.MESSAGE_TOO_BIG, "Azure sent a message that is too large")
            return
        reader = self._reader  # a waiting reader has handled everything before: the sink overtakes nothing
        if self._sink is not None and reader is not None and not reader.done() and self._sink(payload):
            return
        if self._queued_bytes > _QUEUE_HIGH_BYTES + self._max_image_bytes + _QUEUE_BEYOND_BYTES:
            self._refuse(WSCloseCode.POLICY_VIOLATION, "Azure sent too many tiny messages at once")
            return
        try:
            self.put(payload.decode())
        except UnicodeDecodeError:
            self._refuse(WSCloseCode.INVALID_TEXT, "Azure sent something that is no event")

    def _refuse(self, code: WSCloseCode, why: str) -> None:
        """Ends the connection because of what Azure sent. Raising would end it too, but picows would log the error."""
        self._message = None
        self._refused = True
        self._end(why)
        if self._transport is not None:
            self._transport.send_close(code)
            self._pause()

    def _pause(self) -> None:
        if self._transport is not None and not self._transport.is_disconnected:
            self.paused = True
            self._transport.underlying_transport.pause_reading()

    def _resume(self) -> None:
        if self.paused and not self._refused and self._transport is not None and not self._transport.is_disconnected:
            self._transport.underlying_transport.resume_reading()
        self.paused = False
        self._wake()

    def _end(self, why: str) -> None:
        if self.failure is None:
            self.failure = why
            if self.on_end is not None:
                self.on_end(why)
        if (reader := self._reader) is not None and not reader.done():
            reader.set_result(None)
        self._wake()

    async def _change(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


async def connect(
    url: str,
    headers: Mapping[str, str],
    *,
    names: DnsCache,
    tls: ssl.SSLContext,
    max_message_bytes: int,
    max_image_bytes: int = 0,
    deadline_s: float,
    log_to: logging.Logger,
    proxy: OutboundProxy | None = None,
) -> AzureSocket:
    """An open WebSocket to `url` (http or https), through `proxy` where that serves it.

    Nothing is left open where it fails or is cancelled. `deadline_s` (the loop's clock) bounds each part; the caller
    bounds the whole. Raises OSError (name, connection, TLS; ProxyFailedError), `picows.WSError` (the handshake's
    answer), TimeoutError.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if proxy is not None and proxy.serves(url):
        sock = await _open_tunnel(proxy, host, port, names=names, deadline_s=deadline_s)
    else:
        sock = await _open_socket(await names.resolve(host, port), deadline_s=deadline_s)
    left_s = max(0.001, deadline_s - asyncio.get_running_loop().time())
    limits: dict[str, Any] = {}
    if parts.scheme == "https":
        limits = {"ssl_handshake_timeout": left_s, "ssl_shutdown_timeout": _GRACEFUL_CLOSE_S}
    made: list[AzureSocket] = []

    def make(request: WSUpgradeRequest, response: WSUpgradeResponse) -> AzureSocket:
        del request, response
        made.append(AzureSocket(max_message_bytes=max_message_bytes, max_image_bytes=max_image_bytes))
        return made[0]

    try:
        await ws_connect(
            make,
            parts._replace(scheme="wss" if parts.scheme == "https" else "ws").geturl(),
            ssl_context=tls if parts.scheme == "https" else None,
            websocket_handshake_timeout=left_s + _GRACEFUL_CLOSE_S,  # longer than the caller's own limit, which decides
            logger_name=log_to,
            enable_auto_ping=False,
            enable_auto_pong=False,
            max_frame_size=max(max_message_bytes, max_image_bytes),
            extra_headers=dict(headers),
            max_redirects=0,
            read_buffer_init_size=_FIRST_READ_BUFFER_BYTES,
            socket_factory=lambda _: sock,
            **limits,
        )
        if not made:
            raise ConnectionResetError("closed in the handshake")
    except BaseException:
        with contextlib.suppress(OSError):  # the transport may have closed it already
            sock.shutdown(socket.SHUT_RDWR)
        raise
    return made[0]


async def _open_tunnel(
    proxy: OutboundProxy, host: str, port: int, *, names: DnsCache, deadline_s: float
) -> socket.socket:
    """A socket whose bytes the proxy passes to `host`, which only the proxy looks up. Raises ProxyFailedError."""
    try:
        sock = await _open_socket(await names.resolve(proxy.host, proxy.port), deadline_s=deadline_s)
    except TimeoutError:
        raise
    except OSError:
        raise proxy.failure(None) from None
    try:
        async with asyncio.timeout_at(deadline_s):
            await proxy.open_tunnel(sock, host, port)
    except BaseException:
        sock.close()
        raise
    return sock


async def _open_socket(addresses: Sequence[ResolveResult], *, deadline_s: float) -> socket.socket:
    """A socket connected to the first address that answers; each gets an equal share of the time that is left."""
    loop = asyncio.get_running_loop()
    failure: Exception = OSError("no address")
    for tried, address in enumerate(addresses):
        sock = socket.socket(address["family"], socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            async with asyncio.timeout_at(loop.time() + (deadline_s - loop.time()) / (len(addresses) - tried)):
                await loop.sock_connect(sock, (address["host"], address["port"]))
        except (OSError, TimeoutError) as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure
