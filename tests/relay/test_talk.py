"""A talk through the proxy, over real sockets on both sides."""

import asyncio
import base64
import json
from dataclasses import asdict

from strategies.endpoint import parse_target
from tests.relay.support.azure import AzureTalk, answer, converse, scripted_azure
from tests.relay.support.broker import KEY, broker
from token_broker.relay.azure.connector import make_routes


async def test_ready_comes_before_session() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running, running.client() as client:
        assert client.socket.subprotocol == "realtime"
        ready = await client.ready()
        assert (ready["session_id"], ready["agent_id"]) == (client.session_id, "elena")
        assert (ready["dialect"], ready["upstream"], ready["resource"]) == ("preview", "voice_live", "default")
        created = await client.until("session.created")
        updated = await client.until("session.updated")
        assert "instructions" not in created["session"]
        assert "instructions" not in updated["session"]
        talk = await azure.talk()
        assert talk.headers["api-key"] == KEY
        assert talk.path == "/voice-live/realtime?api-version=2025-10-01&model=gpt-realtime"
        session = talk.received[0]["session"]
        assert session["instructions"].startswith("You are Elena")
        assert session["voice"] == {"type": "azure-standard", "name": "en-US-Ava:DragonHDLatestNeural"}


async def test_audio_passes_unchanged_in_order() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running, running.client() as client:
        await client.ready()
        frames = [
            '{"type":"input_audio_buffer.append","audio":"' + base64.b64encode(bytes([n]) * 960).decode() + '"}'
            for n in range(50)
        ]
        for frame in frames:
            await client.socket.send(frame)
        talk = await azure.talk()
        await talk.next_event("input_audio_buffer.append", nth=50)
        assert talk.raw[1:] == frames
        for number in range(200):
            await talk.send({"type": "response.audio.delta", "number": number, "delta": "AAAA"})
        numbers = [(await client.until("response.audio.delta"))["number"] for _ in range(200)]
        assert numbers == list(range(200))


async def test_turns_are_kept_in_conversation_order() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        async with running.client() as client:
            await client.ready()
            talk = await azure.talk()
            await talk.commit("item_u1")
            await talk.say("item_a1", "Good morning.", previous="item_u1")
            await talk.hear("item_u1", "Hello?")
            await running.ingest.reach(2)
        await running.quiet()
        assert running.ingest.said == [("user", "Hello?"), ("assistant", "Good morning.")]
        assert [turn.sequence for turn in sorted(running.ingest.turns, key=lambda t: t.sequence or 0)] == [0, 1]
        assert all(turn.source == "proxy" and not turn.interrupted for turn in running.ingest.turns)


async def test_openai_replaces_refusing_voice_live() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        azure.refuse = lambda request: answer(404) if "voice-live" in request.path else None
        async with running.client() as client:
            ready = await client.ready()
            assert (ready["dialect"], ready["upstream"]) == ("ga", "openai_realtime")
            talk = await azure.talk()
            assert talk.path == "/openai/v1/realtime?model=gpt-realtime"
            assert talk.received[0]["session"]["audio"]["output"]["voice"] == "marin"
            await talk.say("item_a1", "Hello from the other one.")
            await client.until("response.done")
        await running.quiet()
        assert running.ingest.said == [("assistant", "Hello from the other one.")]


async def test_client_ends_talk_with_1000() -> None:
    async with scripted_azure(converse) as azure, broker(azure.url) as running:
        async with running.client() as client:
            await client.ready()
        await running.quiet()
        talk = await azure.talk()
        async with asyncio.timeout(2):
            await talk.closed.wait()
        assert running.relay.snapshot().closes == {"1000": 1}
        assert json.dumps(asdict(running.relay.snapshot()))


async def test_early_message_waits_for_session() -> None:
    asked = asyncio.Event()

    async def slow(talk: AzureTalk) -> None:
        talk.arrived(await talk.connection.recv())
        await asked.wait()
        await talk.send({"type": "session.updated", "session": {}})
        async for message in talk.connection:
            talk.arrived(message)

    async with scripted_azure(slow) as azure, broker(azure.url) as running, running.client() as client:
        await client.send({"type": "response.create"})
        talk = await azure.talk()
        await talk.next_event("session.update")
        asked.set()
        await client.ready()
        await talk.next_event("response.create")
        assert [event["type"] for event in talk.received] == ["session.update", "response.create"]


def test_direct_endpoint_has_openai_route_only() -> None:
    target = parse_target("https://x.openai.azure.com")
    (route,) = make_routes(target, ("voice_live", "openai_realtime"), api_version="2025-10-01")
    assert (route.name, route.url_of("my model")) == (
        "openai_realtime",
        "https://x.openai.azure.com/openai/v1/realtime?model=my%20model",
    )


def test_unified_endpoint_has_both_routes() -> None:
    target = parse_target("https://x.services.ai.azure.com")
    routes = make_routes(target, ("voice_live", "openai_realtime"), api_version="2025-10-01")
    assert [route.url_of("gpt-realtime") for route in routes] == [
        "https://x.services.ai.azure.com/voice-live/realtime?api-version=2025-10-01&model=gpt-realtime",
        "https://x.openai.azure.com/openai/v1/realtime?model=gpt-realtime",
    ]
