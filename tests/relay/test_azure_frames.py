"""Floods of frames from Azure cost little time and memory; an answer that arrives fast is only slowed down."""

import asyncio
from typing import Any

import pytest
from picows import WSMsgType
from websockets.frames import Frame, Opcode

from tests.relay.support.azure import AzureTalk, answer, converse, scripted_azure
from tests.relay.support.broker import broker
from tests.relay.test_library_contracts import opened
from token_broker.relay.azure.socket import AzureSocket

EMPTY_PING = Frame(Opcode.PING, b"").serialize(mask=False)
EMPTY_TEXT = Frame(Opcode.TEXT, b"").serialize(mask=False)


def saying(data: bytes) -> Any:
    """An Azure that sends these bytes and then nothing until the connection ends."""

    async def script(talk: AzureTalk) -> None:
        talk.connection.transport.write(data)
        async for _ in talk.connection:
            pass

    return script


async def failure_of(socket: AzureSocket) -> str | None:
    async with asyncio.timeout(10):
        while socket.failure is None:
            await socket.wait()
            if socket.frames:
                socket.take()
    return socket.failure


async def test_ping_is_answered_with_its_payload() -> None:
    async with scripted_azure(converse) as azure, broker(azure.url) as running, running.client() as client:
        await client.ready()
        talk = await azure.talk()
        for number in range(100):
            await asyncio.wait_for(await talk.connection.ping(b"%d" % number), 5)


@pytest.mark.parametrize("one", [Frame(Opcode.PING, b"x" * 125), Frame(Opcode.PONG, b"")], ids=["pings", "pongs"])
async def test_control_frame_flood_ends_connection(one: Frame) -> None:
    limit: dict[str, Any] = {"proxy_connect_timeout_s": 0.4}
    async with scripted_azure() as azure, broker(azure.url, **limit) as running, running.client() as client:
        await client.ready()
        azure.refuse = lambda _: answer(503)  # no other session can be had
        talk = await azure.talk()
        talk.connection.transport.write(one.serialize(mask=False) * 100_000)
        assert await client.closed() == 4502
        assert client.socket.close_reason == "Azure sent too many control frames: ask for a new plan"
        await running.quiet()


async def test_stalled_azure_gets_only_last_pong() -> None:
    class Transport:
        def __init__(self) -> None:
            self.sent: list[bytes] = []

        def send_pong(self, payload: bytes) -> None:
            self.sent.append(payload)

    class Ping:
        msg_type = WSMsgType.PING
        fin = True

        def __init__(self, payload: bytes) -> None:
            self.get_payload_as_bytes = lambda: payload

    socket, transport = AzureSocket(max_message_bytes=1_000), Transport()
    socket._transport = transport  # type: ignore[assignment]
    socket.pause_writing()
    for number in range(100):
        socket.on_ws_frame(transport, Ping(b"%d" % number))  # type: ignore[arg-type]
    assert transport.sent == []
    socket.resume_writing()
    assert transport.sent == [b"99"]


async def test_queue_of_empty_frames_is_bounded() -> None:
    async with scripted_azure(saying(EMPTY_TEXT * 6_000)) as azure:
        ours = await opened(azure.url)
        async with asyncio.timeout(10):
            while not ours.paused:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert ours.failure is None  # sending fast is legitimate
        for _ in range(6_000):
            await ours.wait()
            ours.take()
        await ours.aclose()


async def test_flood_of_empty_messages_is_bounded() -> None:
    async with scripted_azure(saying(EMPTY_TEXT * 500_000)) as azure:
        ours = await opened(azure.url)
        async with asyncio.timeout(10):
            while ours.failure is None and not ours.paused:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert 4_000 < len(ours.frames) < 30_000
        await ours.aclose()


async def test_endless_empty_fragments_are_refused() -> None:
    begun = Frame(Opcode.TEXT, b"", fin=False).serialize(mask=False)
    endless = begun + Frame(Opcode.CONT, b"", fin=False).serialize(mask=False) * 100_000
    async with scripted_azure(saying(endless)) as azure:
        ours = await opened(azure.url)
        assert await failure_of(ours) == "Azure sent a message that is too large"
        await ours.aclose()


async def test_refused_connection_is_closed_at_once() -> None:
    async with scripted_azure(saying(EMPTY_PING * 1_000_000)) as azure:
        ours = await opened(azure.url)
        assert await failure_of(ours) == "Azure sent too many control frames"
        assert ours.paused
        assert ours._transport is not None
        assert not ours._transport.underlying_transport.is_reading()
        async with asyncio.timeout(5):
            await ours.aclose()


async def test_fast_answer_arrives_whole() -> None:
    """Ten minutes of audio at once: more frames than a client may send in a second, but legitimate from Azure."""
    async with scripted_azure() as azure, broker(azure.url) as running, running.client(max_queue=4) as client:
        await client.ready()
        await client.until("session.updated")
        talk = await azure.talk()
        event = Frame(Opcode.TEXT, b'{"type":"response.audio.delta","delta":"AAAA"}').serialize(mask=False)

        async def speak() -> None:
            for _ in range(60):
                talk.connection.transport.write(event * 200)
                await asyncio.sleep(0)

        speaking = asyncio.create_task(speak())
        for _ in range(12_000):
            await client.until("response.audio.delta")
        await speaking
