"""Faults of clients: Azure gets only what the allowlist permits, and nothing is left over (`serving` checks that)."""

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tests.relay.support.azure import AzureTalk, answer, converse, scripted_azure
from tests.relay.support.broker import Client, Running, broker
from token_broker.relay.counters import Usage


@contextlib.asynccontextmanager
async def talking(**overrides: Any) -> AsyncIterator[tuple[Running, Client, AzureTalk]]:
    async with scripted_azure() as azure, broker(azure.url, **overrides) as running, running.client() as client:
        await client.ready()
        yield running, client, await azure.talk()


async def test_vanished_clients_last_turns_are_kept() -> None:
    async with talking() as (running, client, talk):
        await talk.commit("item_u")
        await talk.send(
            {"type": "response.audio_transcript.delta", "item_id": "item_a", "response_id": "r", "delta": "Well, I"}
        )
        await client.until("response.audio_transcript.delta")
        client.socket.transport.abort()
        await talk.send(
            {
                "type": "conversation.item.input_audio_transcription.completed",
                "item_id": "item_u",
                "transcript": "My last words.",
            }
        )
        await running.ingest.reach(2)
        await running.quiet()
        assert running.ingest.said == [("user", "My last words."), ("assistant", "Well, I")]
        assert [turn.interrupted for turn in running.ingest.turns if turn.role == "assistant"] == [True]


async def deaf_socket(running: Running) -> socket.socket:
    """A connected socket with a small receive buffer: by default the kernel holds megabytes unread."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", running.port))
    return raw


async def test_client_that_does_not_read_closes_4410() -> None:
    async with (
        scripted_azure() as azure,
        broker(azure.url, client_write_timeout_s=0.5) as running,
        running.client(sock=await deaf_socket(running), max_queue=1) as client,
    ):
        await client.ready()
        talk = await azure.talk()

        async def flood() -> None:
            frame = json.dumps({"type": "response.audio.delta", "delta": "A" * 60_000})
            for _ in range(400):
                await talk.connection.send(frame)

        flooding = asyncio.create_task(flood())
        await running.quiet()
        with contextlib.suppress(ConnectionClosed):
            await flooding
        assert await client.closed() == 4410


async def test_slow_client_pauses_azures_socket() -> None:
    async with (
        scripted_azure() as azure,
        broker(azure.url, ping_interval_s=0.3) as running,
        running.client(max_queue=1) as client,
    ):
        await client.ready()
        talk = await azure.talk()
        frame = '{"type":"response.audio.delta","delta":"' + "A" * 12_000 + '"}'
        count = 1_500  # 18 MB

        async def flood() -> None:
            for _ in range(count):
                await talk.connection.send(frame)

        flooding = asyncio.create_task(flood())
        held = running.relay._talks
        (one,) = held
        assert one._upstream is not None
        upstream = one._upstream.socket
        async with asyncio.timeout(60):  # so much has to fill the sockets' buffers on a busy machine, too
            while not upstream.paused:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.7)  # two ping intervals: a healthy Azure is not dropped because we do not read its pongs
        assert not flooding.done()
        assert sum(map(len, upstream.frames)) < 600_000
        for _ in range(count):
            assert (await client.until("response.audio.delta"))["delta"] == "A" * 12_000
        await flooding


async def take_nothing_more(talk: AzureTalk) -> None:
    """Accepts the session, then reads nothing until the test resumes it."""
    talk.arrived(await talk.connection.recv())
    await talk.send({"type": "session.updated", "session": {}})
    talk.connection.transport.pause_reading()
    async for _ in talk.connection:
        pass


async def test_flooding_client_is_slowed_to_azure() -> None:
    async with (
        scripted_azure(take_nothing_more) as azure,
        broker(azure.url, client_write_timeout_s=0.5, proxy_connect_timeout_s=0.4) as running,
        running.client() as client,
    ):
        await client.ready()
        azure.refuse = lambda _: answer(503)  # no other session can be had
        append = '{"type":"input_audio_buffer.append","audio":"' + "A" * 200_000 + '"}'
        sent = 0
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            while sent < 1_000:
                async with asyncio.timeout(2):
                    await client.socket.send(append)
                sent += 1
        assert sent < 200  # 40 MB: the kernel's buffers, and little of ours
        assert await client.closed() == 4502
        azure.talks[0].connection.transport.resume_reading()


async def test_refused_event_flood_closes_4410() -> None:
    async with (
        scripted_azure() as azure,
        broker(azure.url, client_write_timeout_s=0.5, frames_per_second=0) as running,
        running.client(sock=await deaf_socket(running), max_queue=1) as client,
    ):
        await client.ready()
        assert running.server is not None
        (served,) = running.server.server_state.connections
        # By default the kernel buffers megabytes of answers for a client that does not read.
        served.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        nonsense = Frame(Opcode.TEXT, b'{"type":"broker.nonsense"}').serialize(mask=True) * 5_000
        client.socket.transport.write(nonsense)
        await running.quiet()
        assert await client.closed() == 4410


@pytest.mark.parametrize(
    "message",
    [
        b"\x00\x01", "{", "[]", "nonsense", "{}", '{"type":7}', "[" * 50_000, '{"type":NaN}',
        *[f'{{"type":"response.cancel","x":{number}}}' for number in ("1e999", "-1e999", "-Infinity", "9" * 5_000)],
    ],
)  # fmt: skip
async def test_non_event_closes_4400(message: str | bytes) -> None:
    async with talking() as (_, client, talk):
        await client.socket.send(message)
        assert await client.closed() == 4400
        assert len(talk.raw) == 1  # the broker's own session.update


async def test_invalid_utf8_ends_talk() -> None:
    async with talking() as (_, client, _talk):
        client.socket.transport.write(Frame(Opcode.TEXT, b"\xff\xfe").serialize(mask=True))
        assert await client.closed() == 1007


@pytest.mark.parametrize("fragmented", [False, True])
async def test_oversized_message_closes_1009(fragmented: bool) -> None:
    async with talking() as (running, client, _):
        parts = ['{"type":"input_audio_buffer.append","audio":"', *["A" * 50_000] * 6, '"}']
        with contextlib.suppress(ConnectionClosed):
            await client.socket.send(parts if fragmented else "".join(parts))
        assert await client.closed() == 1009
        await running.quiet()
        assert running.relay.snapshot().closes == {"1009": 1}


SMUGGLED = {
    "a plain session.update": (
        '{"type":"session.update","session":{"instructions":"EVIL",'
        '"voice":"EVIL","tools":["EVIL"],"model":"EVIL","temperature":0.7}}'
    ),
    "a repeated type": (
        '{"type":"input_audio_buffer.append","type":"session.update","session":{"instructions":"EVIL"}}'
    ),
    "a type repeated behind the audio": (
        '{"type":"input_audio_buffer.append","audio":"AAAA","type":"session.update","session":{"instructions":"EVIL"}}'
    ),
    "an escaped type": '{"type":"session\\u002eupdate","session":{"instructions":"EVIL"}}',
    "an escaped key": '{"type":"session.update","s\\u0065ssion":{"instruction\\u0073":"EVIL"}}',
    "a repeated session": '{"type":"session.update","session":{},"session":{"instructions":"EVIL"}}',
    "another case": '{"type":"session.update","Session":{"Instructions":"EVIL"}}',
    "a nested voice": (
        '{"type":"session.update","session":{"audio":{"output":{"voice":"EVIL"},"input":{"transcription":null}}}}'
    ),
    "a response's own": (
        '{"type":"response.create","response":{"instructions":"EVIL",'
        '"tools":[{"name":"EVIL"}],"audio":{"output":{"voice":"EVIL"}}}}'
    ),
    "a stored prompt": '{"type":"session.update","session":{"prompt":{"id":"EVIL"}}}',
    "an append with a second key": (
        '{"type":"input_audio_buffer.append","audio":"AAAA","session":{"instructions":"EVIL"}}'
    ),
}


@pytest.mark.parametrize("text", SMUGGLED.values(), ids=SMUGGLED.keys())
async def test_client_cannot_set_agents_settings(text: str) -> None:
    async with talking() as (_, client, talk):
        await client.socket.send(text)
        await client.send({"type": "input_audio_buffer.clear"})
        await talk.next_event("input_audio_buffer.clear")
        passed = [str(raw) for raw in talk.raw[1:]]
        assert len(passed) == 2
        assert "EVIL" not in passed[0]
        assert json.loads(passed[0])["type"] == json.loads(text)["type"]


async def test_fragmented_update_is_read_whole() -> None:
    async with talking() as (_, client, talk):
        await client.socket.send(
            ['{"type":"session.up', 'date","session":{"instr', 'uctions":"EVIL","max_response_output_tokens":9}}']
        )
        event = await talk.next_event("session.update", nth=2)
        assert event["session"] == {"max_response_output_tokens": 9}


@pytest.mark.parametrize(
    "event",
    [
        {"type": "conversation.item.create", "item": {"type": "message", "role": "system", "content": []}},
        {"type": "conversation.item.create", "item": {"type": "message", "Role": "Developer", "content": []}},
        {"type": "response.create", "response": {"input": [{"type": "message", "role": "system", "content": []}]}},
    ],
)
async def test_system_item_is_refused_talk_goes_on(event: dict[str, Any]) -> None:
    async with talking() as (_, client, talk):
        await client.send(event)
        error = await client.until("broker.error")
        assert (error["code"], error["retryable"]) == ("system_item_refused", False)
        await client.send({"type": "response.create"})
        await talk.next_event("response.create")
        assert len(talk.raw) == 2


UNKNOWN = [
    {"type": "greeting", "text": "EVIL"},
    {"type": "handoff", "agent_id": "EVIL"},
    {"type": "pre_generated_assistant_message", "content": [{"type": "text", "text": "EVIL"}]},
    {"type": "invoke_input", "input": "EVIL"},
    {"type": "transcription_session.update", "session": {"instructions": "EVIL"}},
    {"type": "rtc.call.sdp.create", "session": {"instructions": "EVIL"}},
    {"type": "session.update ", "session": {"instructions": "EVIL"}},
    {"type": "conversation.item.create", "item": {"type": "function_call", "name": "EVIL", "arguments": "{}"}},
    {"type": "session.update", "session": {"turn_detection": "EVIL"}},
]


@pytest.mark.parametrize("event", UNKNOWN, ids=lambda event: event["type"])
async def test_unknown_event_never_reaches_azure(event: dict[str, Any]) -> None:
    async with talking() as (running, client, talk):
        await client.send(event)
        error = await client.until("broker.error")
        assert error["code"] in {"unknown_event", "event_refused"}
        assert not error["retryable"]
        assert event["type"].strip() in error["message"]
        await client.send({"type": "response.cancel"})
        await talk.next_event("response.cancel")
        assert "EVIL" not in str(talk.raw)
        assert running.relay.snapshot().refused_events == 1


OWN_OF_A_RESPONSE = [
    {"type": "response.create", "instructions": "EVIL"},
    {"type": "response.create", "response": {"pre_generated_assistant_message": {"content": [{"text": "EVIL"}]}}},
    {"type": "response.create", "response": {"invoke_input": {"x": "EVIL"}}},
    {
        "type": "response.create",
        "response": {"greeting": "EVIL", "reasoning_effort": "EVIL", "Metadata": {"x": "EVIL"}},
    },
]


@pytest.mark.parametrize("event", OWN_OF_A_RESPONSE, ids=str)
async def test_response_loses_unlisted_fields(event: dict[str, Any]) -> None:
    async with talking() as (running, client, talk):
        await client.send(event)
        asked = await talk.next_event("response.create")
        assert asked in ({"type": "response.create"}, {"type": "response.create", "response": {}})
        assert running.relay.snapshot().fields_left_out >= 1


async def test_typed_text_is_a_user_turn() -> None:
    async with talking() as (running, client, _):
        content = [{"type": "input_text", "text": "I would rather write."}]
        await client.send(
            {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}
        )
        await running.ingest.reach(1)
        assert running.ingest.said == [("user", "I would rather write.")]


async def test_lost_turn_is_counted_and_reported() -> None:
    async with talking() as (running, client, talk):
        running.ingest.full = True
        await talk.hear("item_u", "Hello?")
        assert (await client.until("broker.error"))["code"] == "turn_lost"
        assert running.relay.snapshot().turns_lost == 1


async def test_idle_client_closes_after_limit() -> None:
    async with talking(idle_timeout_s=0.5) as (_, client, _talk):
        assert await client.closed() == 1000


async def test_talk_ends_at_max_duration() -> None:
    async with talking(max_talk_s=1) as (_, client, _talk):
        append = '{"type":"input_audio_buffer.append","audio":"' + base64.b64encode(bytes(960)).decode() + '"}'

        async def go_on() -> None:
            while True:
                await client.socket.send(append)
                await asyncio.sleep(0.02)

        speaking = asyncio.create_task(go_on())
        assert await client.closed() == 1000
        with contextlib.suppress(ConnectionClosed):
            await speaking


async def test_usage_counts_by_principal_and_agent() -> None:
    async with talking() as (running, client, talk):
        await talk.say("item_a", "Hello.")
        await client.until("response.done")
        figures = running.relay.snapshot()
        expected = Usage(responses=1, total_tokens=30, input_tokens=10, output_tokens=20)
        assert figures.usage == figures.usage_by_agent["elena"] == figures.usage_by_principal["anonymous"] == expected


async def test_fake_azure_records_requests() -> None:
    async with scripted_azure(converse) as azure, broker(azure.url) as running, running.client() as client:
        await client.ready()
        assert len(azure.talks) == 1
