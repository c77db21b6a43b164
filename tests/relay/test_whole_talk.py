"""A whole talk with the simulated Azure: speech comes back, and both sides' turns are kept in order."""

import asyncio
import base64
from typing import Any

import pytest
from pydantic import SecretStr

from tests.relay.support.broker import Client, Running, broker
from tests.simulator.support import correlation, silence, speech
from token_broker.simulator import SimulatorConfig, run_in_thread

CHUNK_S = 0.02
CHUNK_BYTES = 960
SIMULATED: dict[str, Any] = {"key": SecretStr("simulated-key")}


async def say(client: Client, pcm: bytes, *, real_time: bool) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number, at in enumerate(range(0, len(pcm), CHUNK_BYTES)):
        audio = base64.b64encode(pcm[at : at + CHUNK_BYTES]).decode()
        await client.socket.send('{"type":"input_audio_buffer.append","audio":"' + audio + '"}')
        if real_time:
            await asyncio.sleep(max(0.0, began + (number + 1) * CHUNK_S - loop.time()))


def heard(client: Client) -> bytes:
    deltas = {"response.audio.delta", "response.output_audio.delta"}
    return b"".join(base64.b64decode(event["delta"]) for event in client.events if event["type"] in deltas)


async def told(running: Running, count: int) -> list[tuple[str, str]]:
    await running.ingest.reach(count)
    return running.ingest.said


async def test_realtime_speech_comes_back_as_sent() -> None:
    with run_in_thread() as azure:
        async with broker(azure.base_url, **SIMULATED) as running, running.client() as client:
            await client.ready()
            speaking = asyncio.create_task(say(client, speech(2) + silence(1), real_time=True))
            done = await client.until("response.done")
            await speaking
            assert done["response"]["status"] == "completed"
            assert correlation(speech(2), heard(client)) > 0.99
            words = await told(running, 2)
            assert [role for role, _ in words] == ["user", "assistant"]
            assert all("[simulated]" in text for _, text in words)
            assert running.relay.snapshot().usage.responses == 1


@pytest.mark.parametrize("upstream", ["voice_live", "openai_realtime"])
async def test_late_transcripts_keep_turns_in_order(upstream: str) -> None:
    config = SimulatorConfig(transcript_timing="after_answer", answer_speed=50)
    with run_in_thread(config) as azure:
        async with broker(azure.base_url, proxy_upstreams=(upstream,), **SIMULATED) as running:
            async with running.client() as client:
                assert (await client.ready())["upstream"] == upstream
                for seed in (1, 2):
                    await say(client, speech(1.5, seed) + silence(1), real_time=False)
                    await client.until("response.done")
                    await client.until("conversation.item.input_audio_transcription.completed")
            await running.quiet()
            assert [turn.sequence for turn in sorted(running.ingest.turns, key=lambda turn: turn.sequence or 0)] == [
                0, 1, 2, 3,
            ]  # fmt: skip
            assert [role for role, _ in running.ingest.said] == ["user", "assistant"] * 2


async def test_talk_dropped_again_closes_4502() -> None:
    with run_in_thread() as azure:
        async with broker(azure.base_url, **SIMULATED) as running, running.client() as client:
            with azure.fault("drop_after", "/", frames=12):
                await client.ready()
                await say(client, speech(2) + silence(1), real_time=False)
                assert await client.closed() == 4502
        assert [event["reason"] for event in client.events if event["type"] == "broker.resuming"] == ["lost"] * 3


async def test_openai_replaces_hanging_voice_live() -> None:
    with run_in_thread() as azure, azure.fault("hang", "/voice-live"):
        async with (
            broker(azure.base_url, proxy_connect_timeout_s=1.0, **SIMULATED) as running,
            running.client() as client,
        ):
            assert (await client.ready())["dialect"] == "ga"
