"""SIGTERM with running talks, in a separate process: talks keep their grace period, and no turn is lost."""

import asyncio
import contextlib
import json

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.broker import KEY
from tests.relay.support.process import LOOP, broker_process

TALKS = 20


async def code_of(socket: ClientConnection) -> int | None:
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(60):
            while True:
                await socket.recv()
    return socket.close_code


async def test_talks_close_4503_after_grace() -> None:
    async with scripted_azure() as azure, broker_process(azure, LOOP, grace_s=0.7) as process:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(process.connect()) for _ in range(TALKS)]
            for client in clients:
                assert json.loads(await client.recv())["type"] == "broker.ready"
            await asyncio.gather(*(speak(talk) for talk in azure.talks))
            for client in clients:
                while json.loads(await client.recv())["type"] != "response.audio_transcript.delta":
                    pass
            process.terminate()
            async with process.connect() as newcomer:
                assert await code_of(newcomer) == 4503
            assert clients[0].close_code is None  # the grace period is not over
            assert await asyncio.gather(*(code_of(client) for client in clients)) == [4503] * TALKS
        facts = await process.line()
        assert facts == {
            "turns": TALKS,
            "interrupted": TALKS,
            "closes": {"4503": TALKS + 1},
            "tasks": 0,
        }


async def speak(talk: AzureTalk) -> None:
    await talk.send({"type": "response.audio_transcript.delta", "item_id": "a", "response_id": "r", "delta": "I was"})


async def test_process_exits_with_its_last_talk() -> None:
    async with scripted_azure() as azure, broker_process(azure, "asyncio", grace_s=30) as process:
        async with process.connect() as client:
            assert json.loads(await client.recv())["type"] == "broker.ready"
            process.terminate()
            talk = await azure.talk()
            await asyncio.sleep(0.2)
            await talk.hear("item_u", "Still here?")  # the talk goes on
            while json.loads(await client.recv())["type"] != "conversation.item.input_audio_transcription.completed":
                pass
        facts = await process.line()
        assert (facts["turns"], facts["closes"], facts["tasks"]) == (1, {"1000": 1}, 0)


async def test_second_signal_exits_at_once() -> None:
    async with scripted_azure() as azure, broker_process(azure, "asyncio", grace_s=30) as process:
        async with process.connect() as client:
            assert json.loads(await client.recv())["type"] == "broker.ready"
            process.terminate()
            async with process.connect() as newcomer:
                assert await code_of(newcomer) == 4503
            process.terminate()
            assert await code_of(client) is not None
        assert (await process.line())["tasks"] == 0
        assert KEY not in repr(process)
