"""A failed answer is asked for once more where nothing of it was said; a session that gives none is left."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.relay.support.azure import AzureTalk, ScriptedAzure, scripted_azure
from tests.relay.support.broker import Client, Running, broker
from token_broker.relay.answers.answer_retries import AnswerRetries
from token_broker.relay.resume.history import Item
from token_broker.relay.resume.open_answers import OpenAnswer
from token_broker.relay.transcripts.failed_answers import FailedAnswer

pytestmark = pytest.mark.usefixtures("late_transcripts_are_missed")

FAILED = FailedAnswer("resp_1", "failed", "server_error")
FILTERED = FailedAnswer("resp_1", "incomplete", "content_filter")
NAMELESS = FailedAnswer("resp_1", "failed", "unknown")
RESPONSE = {"id": "resp_1"}
WORDS = Item("item_1", "assistant", {0: "Well"})


@pytest.mark.parametrize(
    ("failed", "answer", "asks"),
    [
        (FAILED, OpenAnswer(response=RESPONSE), True),
        (FAILED, None, False),
        (FAILED, OpenAnswer(response={"id": "resp_2"}), False),
        (FAILED, OpenAnswer(response=RESPONSE, heard=True), False),
        (FAILED, OpenAnswer(response=RESPONSE, items=[WORDS]), False),
        (FAILED, OpenAnswer(response=RESPONSE, items=[Item("item_1", "assistant")]), True),
        (FAILED, OpenAnswer(response=RESPONSE, stopped=True), False),
        (FAILED, OpenAnswer(response=RESPONSE, outside=True), False),
        (FILTERED, OpenAnswer(response=RESPONSE), False),
    ],
)
def test_only_silent_failures_are_asked_again(failed: FailedAnswer, answer: OpenAnswer | None, asks: bool) -> None:
    retries = AnswerRetries(asks=True)
    retries.user_spoke()
    retries.answer_began()
    assert retries.remedy(failed, answer).asks == asks
    assert not AnswerRetries(asks=False).remedy(failed, answer).asks


def test_once_an_utterance_and_never_into_speech() -> None:
    retries, answer = AnswerRetries(asks=True), OpenAnswer(response=RESPONSE)
    assert retries.remedy(FAILED, answer).asks
    assert not retries.remedy(FAILED, answer).asks
    retries.user_spoke()
    assert not retries.remedy(FAILED, answer).asks
    retries.answer_began()
    assert retries.remedy(FAILED, answer).asks


def test_nameless_end_after_speech_is_a_barge_in() -> None:
    retries = AnswerRetries(asks=True)
    retries.answer_began()
    assert not retries.is_barge_in(NAMELESS)
    retries.user_spoke()
    assert retries.is_barge_in(NAMELESS)
    assert not retries.is_barge_in(FAILED)


def test_third_failure_running_moves() -> None:
    retries = AnswerRetries(asks=True)
    assert [retries.remedy(FAILED, None).moves for _ in range(3)] == [False, False, True]
    retries.begin_anew()
    assert [retries.remedy(FAILED, None).moves for _ in range(2)] == [False, False]
    retries.begin_anew()
    assert [retries.remedy(FAILED, None).moves for _ in range(3)] == [False, False, True]
    assert not any(retries.remedy(FILTERED, None).moves for _ in range(5))


async def fail(talk: AzureTalk, response_id: str) -> None:
    error = {"type": "failed", "error": {"type": "server_error", "code": "server_error"}}
    await talk.send({"type": "response.created", "response": {"id": response_id, "status": "in_progress"}})
    response = {"id": response_id, "status": "failed", "status_details": error, "output": []}
    await talk.send({"type": "response.done", "response": response})


@asynccontextmanager
async def talking(path: str = "", **settings: Any) -> AsyncIterator[tuple[Running, Client, ScriptedAzure]]:
    async with scripted_azure() as azure, broker(azure.url, **settings) as running, running.client(path=path) as client:
        await client.until("session.created" if path else "broker.ready")
        await (await azure.talk()).commit("item_1")
        yield running, client, azure


async def test_failed_answer_is_asked_for_once_more() -> None:
    async with talking() as (running, client, azure):
        talk = await azure.talk()
        await fail(talk, "resp_1")
        first = await client.until("broker.error")
        asked = await talk.next_event("response.create")
        assert asked["event_id"].startswith("broker_create_")
        await fail(talk, "resp_2")
        second = await client.until("broker.error")
        assert [(told["code"], told["retryable"]) for told in (first, second)] == [("answer_failed", True)] * 2
        assert first["message"] != second["message"]
        await talk.say("item_2", "Here I am.", response_id="resp_3")
        await client.until("response.done")
        assert [event["type"] for event in talk.received].count("response.create") == 1
        assert running.relay.snapshot().failed_answers == {"server_error": 2}


@pytest.mark.parametrize(("path", "settings"), [("/realtime", {}), ("", {"retry_failed_answer": "off"})])
async def test_who_asks_again_is_the_client(path: str, settings: dict[str, Any]) -> None:
    async with talking(path, **settings) as (_, client, azure):
        talk = await azure.talk()
        await fail(talk, "resp_1")
        await client.until("error" if path else "broker.error")
        await talk.say("item_2", "Here I am.", response_id="resp_2")
        await client.until("response.done")
        assert "response.create" not in {event["type"] for event in talk.received}


async def test_session_without_answers_is_left() -> None:
    async with talking() as (running, client, azure):
        talk = await azure.talk()
        await fail(talk, "resp_1")
        await talk.next_event("response.create")
        await fail(talk, "resp_2")
        await talk.commit("item_3")
        await fail(talk, "resp_3")
        assert (await client.until("broker.resuming"))["reason"] == "refused"
        await client.until("broker.resumed")
        other = await azure.talk(1)
        assert await other.next_event("response.create")
        await other.say("item_4", "Here I am.", response_id="resp_4")
        assert (await client.until("response.done"))["response"]["status"] == "completed"
        assert running.relay.snapshot().resumes == {"default": {"refused": 1}}
