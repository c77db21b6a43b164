"""A user who cuts in while a finished answer is played: the turn is stored already, and is marked."""

import base64

import pytest

from tests.calls.test_sideband import call, listen
from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.broker import broker
from token_broker.memory.types import Interruption

_TEN_SECONDS = base64.b64encode(bytes(10 * 48_000)).decode()


async def tell_a_story(talk: AzureTalk) -> None:
    await talk.send({"type": "response.audio.delta", "item_id": "item_1NEGWt6HlQ4SHbk7", "delta": _TEN_SECONDS})
    await talk.say("item_1NEGWt6HlQ4SHbk7", "A long story.")


async def test_proxied_answer_is_marked_when_truncated() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running, running.client() as client:
        await client.ready()
        talk = await azure.talk()
        await tell_a_story(talk)
        await running.ingest.reach(1)
        assert [turn.interrupted for turn in running.ingest.turns] == [False]
        for _ in range(2):
            truncated = {"type": "conversation.item.truncated", "item_id": "item_1NEGWt6HlQ4SHbk7"}
            await talk.send({**truncated, "content_index": 0, "audio_end_ms": 1600})
        await talk.hear("item_u", "Stop.")
        await running.ingest.reach(2, interruptions=1)
        owner = running.ingest.turns[0].owner
        assert running.ingest.interruptions == [Interruption(owner, "item_1NEGWt6HlQ4SHbk7")]
        assert running.relay.snapshot().turns == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conversation.item.truncated", "output_audio_buffer.cleared"])
async def test_calls_answer_is_marked_when_cut(kind: str) -> None:
    async def script(talk: AzureTalk) -> None:
        await talk.send({"type": "output_audio_buffer.started", "response_id": "resp_1"})
        await talk.say("item_a", "A long story.")
        await talk.send({"type": kind, "item_id": "item_a", "response_id": "resp_1"})
        await talk.hear("item_u", "Stop.")

    async with call(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(2, interruptions=1)
        await running.quiet()
        assert [each.turn_id for each in running.ingest.interruptions] == ["item_a"]


async def test_client_that_leaves_interrupts_nothing() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        async with running.client() as client:
            await client.ready()
            await tell_a_story(await azure.talk())
            await client.until("response.done")
        await running.quiet()
        assert [turn.interrupted for turn in running.ingest.turns] == [False]
        assert running.ingest.interruptions == []
