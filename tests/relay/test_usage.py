"""What Azure bills: the model's answers and the transcription of users, on every path, while talks still run."""

import asyncio
from typing import Any

import pytest

from tests.calls.test_sideband import listen
from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.broker import broker
from token_broker.relay.counters import RelayCounters, TalkCounters, TranscriptionUsage, Usage
from token_broker.usage.ledger import UsageLedger

TOKENS = {
    "type": "tokens",
    "total_tokens": 22,
    "input_tokens": 13,
    "output_tokens": 9,
    "input_token_details": {"audio_tokens": 13, "text_tokens": 0},
}
DURATION = {"type": "duration", "seconds": 1.5}


def transcribed(usage: object, item: str = "item_u") -> dict[str, Any]:
    kind = "conversation.item.input_audio_transcription.completed"
    return {"type": kind, "item_id": item, "content_index": 0, "transcript": "Hello.", "usage": usage}


def count(*usages: object) -> TranscriptionUsage:
    counters, talk = RelayCounters(), TalkCounters()
    for usage in usages:
        counters.count_usage_of(transcribed(usage), principal="ann", agent_id="elena", talk=talk, resource="one")
    assert talk.usage == Usage(), "the model's own is apart"
    return talk.transcription


def test_transcription_is_counted_by_its_own_unit() -> None:
    assert count(TOKENS, TOKENS) == TranscriptionUsage(2, 0.0, total_tokens=44, input_tokens=26, output_tokens=18)
    assert count(DURATION, DURATION) == TranscriptionUsage(2, 3.0)


@pytest.mark.parametrize("usage", [None, [], "much", 3])
def test_unreported_usage_counts_nothing(usage: object) -> None:
    assert count(usage) == TranscriptionUsage()


@pytest.mark.parametrize("seconds", [None, "2", True, float("nan"), float("inf"), -1.0, []])
def test_absurd_seconds_count_as_none(seconds: object) -> None:
    assert count({"type": "duration", "seconds": seconds}).seconds == 0.0


def test_finished_talks_are_summed() -> None:
    counters = RelayCounters()
    for _ in range(2):
        talk = TalkCounters()
        counters.count_usage_of(transcribed(DURATION), principal="ann", agent_id="elena", talk=talk, resource="one")
        counters.add(talk)
    assert counters.totals([talk]).transcription == TranscriptionUsage(3, 4.5)


async def test_answer_that_ended_as_the_client_left_is_counted() -> None:
    """Azure had sent it before it saw that the talk is closed. Here it does not read that for a moment."""
    ledger = UsageLedger(None)
    async with scripted_azure() as azure, broker(azure.url, ledger=ledger) as running:
        async with running.client() as client:
            await client.ready()
            (usage,) = ledger._open.values()
            talk = await azure.talk()
            talk.connection.transport.pause_reading()
        await asyncio.sleep(0.2)
        await talk.say("item_a", "Good bye.")
        talk.connection.transport.resume_reading()
        await running.quiet()
        values = usage.values(usage.rows[0])
        assert (values["responses"], values["output_tokens"], values["complete"]) == (1, 20, True)


async def test_talks_transcription_is_in_the_status() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running, running.client() as client:
        await client.ready()
        talk = await azure.talk()
        await talk.commit("item_u")
        await talk.send(transcribed(TOKENS))
        await client.until(transcribed(TOKENS)["type"])
        figures = running.relay.snapshot()
        assert figures.transcription_usage == TranscriptionUsage(1, 0.0, 22, 13, 9)
        assert figures.usage == Usage()


@pytest.mark.usefixtures("late_transcripts_are_missed")
async def test_running_call_is_in_the_status() -> None:
    """A call is heard for as long as it lasts, perhaps an hour: its usage counts from the first answer."""

    async def script(talk: AzureTalk) -> None:
        await talk.say("item_a", "Good evening.")
        await talk.send(transcribed(DURATION))
        await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(2)
        figures = running.relay.snapshot()
        assert figures.usage == Usage(responses=1, total_tokens=30, input_tokens=10, output_tokens=20)
        assert figures.transcription_usage == TranscriptionUsage(1, 1.5)
        assert figures.turns == 2
        running.limits.end("rtc_1")
        await running.quiet()
        await asyncio.sleep(0)
        assert running.relay.snapshot().usage == figures.usage, "counted once"
