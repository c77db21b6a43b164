"""Hostile frames: they delay no other client, pile nothing up, and their connection ends in order."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tests.relay.support.azure import scripted_azure
from tests.relay.support.broker import PATH, Client, Running, broker
from tests.relay.support.process import LOOP, Process, broker_process
from tests.support.machine import retry_if_host_busy
from token_broker.server import framed_websocket as websocket
from token_broker.server.frames import FrameReader
from token_broker.server.websocket_protocol import BrokerWebSocketProtocol
from token_broker.web.requests import uuid7

SIZE_BYTES = 1_000_000
OTHERS_WAIT_AT_MOST_S = 0.5  # 20 ms is usual; without the frame budget, 2 MB took 5 s
GONE_WITHIN_S = 12  # a linger time of 5 s, and time for a busy machine

TINY = {
    "texts": Frame(Opcode.TEXT, b"").serialize(mask=True),
    "pings": Frame(Opcode.PING, b"").serialize(mask=True),
    "pongs": Frame(Opcode.PONG, b"").serialize(mask=True),
    "fragments": Frame(Opcode.CONT, b"", fin=False).serialize(mask=True),
    "closes": Frame(Opcode.CLOSE, b"").serialize(mask=True),
    "events": Frame(Opcode.TEXT, b"{}").serialize(mask=True),
    "unmasked": Frame(Opcode.TEXT, b"{}").serialize(mask=False),
}


def handshake(path: str, protocols: str = "realtime") -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
    ).encode()


async def attack(port: int, head: bytes, frames: bytes) -> bytes:
    """Completes the handshake, sends as much as is accepted, and returns everything that came back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    answer = await reader.readuntil(b"\r\n\r\n")
    sending = asyncio.create_task(send_all(writer, frames))
    try:
        async with asyncio.timeout(GONE_WITHIN_S):
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65_536):
                    answer += data
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        writer.transport.abort()
    return answer


async def send_all(writer: asyncio.StreamWriter, frames: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        for at in range(0, len(frames), 65_536):
            writer.write(frames[at : at + 65_536])
            await writer.drain()


async def slowest_answer_s(port: int, until: "asyncio.Future[Any]") -> float:
    """Requests a page repeatedly until `until` is done; the longest wait."""
    slowest_s = 0.0
    while not until.done():
        began_s = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert await reader.readuntil(b"\r\n")
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        writer.close()
        await asyncio.sleep(0.002)
    return slowest_s


def head_of(process: Process, state: str) -> bytes:
    session = uuid7()
    match state:
        case "talking":
            return handshake(f"{PATH}/{session}", f"realtime, ticket.{process.ticket(session)}")
        case "closed with 4401":
            return handshake(f"{PATH}/{session}")
        case _:
            return handshake("/v1/realtime?model=x")


@retry_if_host_busy()
async def test_tiny_frames_delay_nobody_else() -> None:
    async with scripted_azure() as azure, broker_process(azure, LOOP, grace_s=0.1) as process:
        for state in ("talking", "closed with 4401", "refused over HTTP"):
            attacks = [
                asyncio.ensure_future(attack(process.port, head_of(process, state), one * (SIZE_BYTES // len(one))))
                for one in TINY.values()
            ]
            every = asyncio.gather(*attacks)
            assert await slowest_answer_s(process.port, every) < OTHERS_WAIT_AT_MOST_S, state
            await every
        process.terminate()
        assert (await process.line())["tasks"] == 0


@contextlib.asynccontextmanager
async def talking(**overrides: Any) -> AsyncIterator[tuple[Running, Client]]:
    async with scripted_azure() as azure, broker(azure.url, **overrides) as running, running.client() as client:
        await client.ready()
        await client.until("session.updated")
        yield running, client


HARMLESS = Frame(Opcode.TEXT, b'{"type":"broker.nonsense"}').serialize(mask=True)


@pytest.mark.parametrize(
    ("one", "reason"),
    [(HARMLESS, "too many messages"), (TINY["pongs"], "too many control frames")],
    ids=["messages", "pongs"],
)
async def test_exceeding_the_budget_closes_1008(one: bytes, reason: str) -> None:
    budgets = {"frames_per_second": 30} if one is HARMLESS else {"control_frames_per_second": 30}
    async with talking(**budgets) as (running, client):
        client.socket.transport.write(one * 600)
        assert await client.closed() == 1008
        assert client.socket.close_reason == reason
        await running.quiet()
        assert running.relay.snapshot().closes == {"1008": 1}


async def test_burst_within_budget_is_accepted() -> None:
    async with talking(frames_per_second=30) as (_, client):
        client.socket.transport.write(HARMLESS * 300)
        for _ in range(300):
            await client.until("broker.error")


async def test_budget_0_accepts_any_number() -> None:
    async with talking(frames_per_second=0, control_frames_per_second=0) as (_, client):
        client.socket.transport.write(TINY["pongs"] * 20_000 + HARMLESS)
        await client.until("broker.error")


WRONG = {
    "text": (Frame(Opcode.TEXT, b"\xff\xfe").serialize(mask=True), 1007),
    "text over fragments": (
        Frame(Opcode.TEXT, b"\xc3", fin=False).serialize(mask=True) + Frame(Opcode.CONT, b"\x28").serialize(mask=True),
        1007,
    ),
    "text that ends early": (
        Frame(Opcode.TEXT, b"x", fin=False).serialize(mask=True) + Frame(Opcode.CONT, b"\xc3").serialize(mask=True),
        1007,
    ),
    "opcode 3": (b"\x83\x80mask", 1002),
    "opcode 11": (b"\x8b\x80mask", 1002),
    "a reserved bit": (b"\xc1\x80mask", 1002),
    "a reserved bit of a ping": (b"\xa9\x80mask", 1002),
    "no mask": (Frame(Opcode.TEXT, b"hi").serialize(mask=False), 1002),
    "no mask, and nothing more": (b"\x89\x00", 1002),
    "a ping of 126 bytes": (b"\x89\xfe\x00\x7emask" + bytes(126), 1002),
    "a ping in fragments": (b"\x09\x80mask", 1002),
    "a continuation of nothing": (Frame(Opcode.CONT, b"x").serialize(mask=True), 1002),
    "a message within another": (Frame(Opcode.TEXT, b"x", fin=False).serialize(mask=True) * 2, 1002),
    "a close frame of one byte": (b"\x88\x81\0\0\0\0x", 1002),
    "close code 1005": (b"\x88\x82\0\0\0\0\x03\xed", 1002),
    "close code 999": (b"\x88\x82\0\0\0\0\x03\xe7", 1002),
    "a close reason": (b"\x88\x83\0\0\0\0\x03\xe8\xff", 1007),
    "too long": (b"\x81\xff\x00\x00\x00\x00\xff\xff\xff\xffmask", 1009),
    "longer than there is": (b"\x82\xff" + b"\xff" * 8 + b"mask", 1009),
}


@pytest.mark.parametrize(("data", "code"), WRONG.values(), ids=WRONG.keys())
async def test_invalid_frame_closes_without_traceback(
    data: bytes, code: int, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async with talking() as (running, client):
        client.socket.transport.write(data)
        assert await client.closed() == code
        await running.quiet()
        assert running.relay.snapshot().closes == {str(code): 1}
    said = capsys.readouterr()
    assert [record.message for record in caplog.records if record.name == "uvicorn.error" and record.exc_info] == []
    assert "Traceback" not in said.out + said.err
    assert not any(level in said.out for level in ("[warning", "[error", "[critical"))


def protocol_of(running: Running) -> BrokerWebSocketProtocol:
    assert running.server is not None
    (protocol,) = (one for one in running.server.server_state.connections if isinstance(one, BrokerWebSocketProtocol))
    return protocol


async def deaf_client(running: Running) -> tuple[socket.socket, bytes]:
    """A socket with a small receive buffer, and the handshake for a talk."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", running.port))
    session = uuid7()
    return raw, handshake(f"{PATH}/{session}", f"realtime, ticket.{running.ticket(session)}")


async def test_unread_pongs_do_not_pile_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "_LINGER_S", 0.3)
    loop = asyncio.get_running_loop()
    limits: dict[str, Any] = {"client_write_timeout_s": 0.5, "control_frames_per_second": 0, "frames_per_second": 0}
    async with scripted_azure() as azure, broker(azure.url, **limits) as running:
        raw, head = await deaf_client(running)
        pings = Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * 40_000
        most_waiting = at = 0
        with raw:
            await loop.sock_sendall(raw, head)
            while not running.relay.active:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
            protocol = protocol_of(running)
            protocol.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            async with asyncio.timeout(15):
                while not protocol.disconnected:
                    with contextlib.suppress(BlockingIOError, ConnectionError):
                        at += raw.send(pings[at : at + 65_536])
                    most_waiting = max(most_waiting, protocol.transport.get_write_buffer_size())
                    await asyncio.sleep(0)
        assert at > 1_000_000  # many times the limit of what may wait
        assert most_waiting < 150_000
        await running.quiet()
        assert running.relay.snapshot().closes == {"4410": 1}


async def test_last_ping_is_answered_on_resume() -> None:
    async with talking(control_frames_per_second=0, frames_per_second=0) as (running, client):
        protocol = protocol_of(running)
        protocol.pause_writing()  # as the transport does above its high-water mark
        for number in range(3):
            client.socket.transport.write(Frame(Opcode.PING, b"%d" % number).serialize(mask=True))
        async with asyncio.timeout(5):
            while protocol._owed_pong != b"2":  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        waiter = await client.socket.ping(b"asked")
        async with asyncio.timeout(5):
            while protocol._owed_pong != b"asked":  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        protocol.resume_writing()
        await asyncio.wait_for(waiter, 5)


async def refused(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that was accepted and closed with 4401, whose client has sent no close frame yet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(handshake(f"{PATH}/{uuid7()}"))
    await reader.readuntil(b"\r\n\r\n")
    close = await reader.readexactly(4)
    assert (close[0], int.from_bytes(close[2:4], "big")) == (0x88, 4401)
    await reader.readexactly(close[1] - 2)
    return reader, writer


async def test_closed_client_is_read_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(self: FrameReader) -> None:
        raise AssertionError

    monkeypatch.setattr(FrameReader, "read", read)
    monkeypatch.setattr(websocket, "_LINGER_S", 60)
    async with scripted_azure() as azure, broker(azure.url) as running:
        reader, writer = await refused(running)
        writer.write(TINY["pings"] * 100 + TINY["events"] * 100)
        await asyncio.sleep(0.1)
        writer.write(TINY["closes"])
        assert await asyncio.wait_for(reader.read(), 5) == b""  # no pong, and at once
        writer.close()


async def test_closed_client_is_dropped_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "_LINGER_S", 0.3)
    async with scripted_azure() as azure, broker(azure.url) as running:
        reader, writer = await refused(running)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                while not reader.at_eof():
                    writer.write(TINY["pings"] * 10_000)
                    await writer.drain()
                    await asyncio.sleep(0.001)
        writer.transport.abort()


async def test_offender_still_gets_close_frame() -> None:
    async with talking() as (_, client):
        client.socket.transport.write(TINY["unmasked"] + b"x" * 3_000_000)
        with contextlib.suppress(ConnectionClosed):
            assert await client.closed() == 1002
