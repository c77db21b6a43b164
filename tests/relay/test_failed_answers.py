"""An answer that Azure does not finish is told, counted and logged; one that the user cut short is none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.calls.test_sideband import call, listen
from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.broker import Client, Running, broker
from token_broker.relay.counters import RelayCounters, TalkCounters
from token_broker.relay.transcripts.failed_answers import FailedAnswer, failed_answer

Event = dict[str, Any]

RATE_LIMITED = {
    "type": "failed",
    "error": {"type": "tokens", "code": "rate_limit_exceeded", "message": "Azure's words"},
}
SERVER_ERROR = {"type": "failed", "error": {"type": "server_error", "code": None}}
FILTERED = {"type": "incomplete", "reason": "content_filter"}
FULL = {"type": "incomplete", "reason": "max_output_tokens"}
CUT = {"type": "cancelled", "reason": "turn_detected"}


def done(status: str, details: object) -> Event:
    response = {"id": "resp_1", "object": "realtime.response", "status": status, "status_details": details}
    return {"type": "response.done", "response": {**response, "output": []}}


@pytest.mark.parametrize(
    ("status", "details", "expected"),
    [
        ("failed", RATE_LIMITED, ("rate_limit_exceeded", True)),
        ("failed", SERVER_ERROR, ("server_error", True)),
        ("failed", None, ("unknown", True)),
        ("failed", {"error": "no object"}, ("unknown", True)),
        ("failed", {"error": {"code": "a b\nc", "type": 7}}, ("unknown", True)),
        ("incomplete", FILTERED, ("content_filter", False)),
        ("incomplete", FULL, None),
        ("incomplete", None, None),
        ("cancelled", CUT, None),
        ("completed", None, None),
    ],
)
def test_failures_and_their_codes(status: str, details: object, expected: tuple[str, bool] | None) -> None:
    failed = failed_answer(done(status, details))
    assert (failed and (failed.code, failed.retryable)) == expected


@pytest.mark.parametrize("event", [{}, {"response": []}, {"response": {"status": ["failed"]}}])
def test_no_response_is_no_failure(event: Event) -> None:
    assert failed_answer(event) is None


def test_codes_that_are_counted_are_bounded() -> None:
    counters, talk = RelayCounters(), TalkCounters()
    for number in range(1000):
        counters.count_failed_answer(FailedAnswer("", "failed", f"code_{number}"), talk, resource="one")
    assert len(counters.failed_answers) <= 51
    assert sum(counters.failed_answers.values()) == talk.failed_answers == 1000


@asynccontextmanager
async def talking(compat: str = "") -> AsyncIterator[tuple[Running, Client, AzureTalk]]:
    async with scripted_azure() as azure, broker(azure.url) as running, running.client(path=compat) as client:
        await client.until("session.created" if compat else "broker.ready")
        yield running, client, await azure.talk()


@pytest.mark.parametrize(
    ("status", "details", "retryable"), [("failed", RATE_LIMITED, True), ("incomplete", FILTERED, False)]
)
async def test_client_is_told_of_a_failure(
    status: str, details: object, retryable: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async with talking() as (running, client, talk):
        await talk.send(done(status, details))
        await client.until("response.done")
        told = await client.next()
        assert (told["type"], told["code"], told["retryable"]) == ("broker.error", "answer_failed", retryable)
        assert "Azure's words" not in told["message"]
        assert len(running.relay.snapshot().failed_answers) == 1
        await talk.say("item_a", "It works again.")
        await client.until("response.done")
    lines = [line for line in capsys.readouterr().out.splitlines() if "answer_failed" in line]
    assert len(lines) == 1
    assert client.session_id in lines[0]
    assert status in lines[0]


@pytest.mark.parametrize("compat", ["/realtime", "/voice-live/realtime"])
async def test_official_client_gets_an_error(compat: str) -> None:
    async with talking(compat) as (running, client, talk):
        await talk.send(done("failed", RATE_LIMITED))
        await client.until("response.done")
        told = await client.next()
        assert told["type"] == "error"
        assert told["event_id"]
        assert (told["error"]["type"], told["error"]["code"]) == ("server_error", "answer_failed")
        assert running.relay.snapshot().failed_answers == {"rate_limit_exceeded": 1}


async def test_missing_transcriber_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    kind = "conversation.item.input_audio_transcription"
    error = {"type": "server_error", "code": "DeploymentNotFound", "message": "Failed.", "param": None}
    async with talking() as (running, client, talk):
        for number in range(2):
            await talk.send({"type": f"{kind}.failed", "item_id": f"i{number}", "content_index": 0, "error": error})
            await client.until(f"{kind}.failed")
        assert running.relay.snapshot().transcription_missing == ["default"]
        await talk.send({"type": f"{kind}.completed", "item_id": "i2", "content_index": 0, "transcript": "Heard."})
        await client.until(f"{kind}.completed")
        assert running.relay.snapshot().transcription_missing == []
    lines = [line for line in capsys.readouterr().out.splitlines() if "transcription_deployment_missing" in line]
    assert len(lines) == 1
    assert "resource=default" in lines[0]


async def test_barge_in_is_no_failure() -> None:
    async with talking() as (running, client, talk):
        await talk.send(done("cancelled", CUT))
        await talk.say("item_a", "Yes?")
        await client.until("response.done")
        assert (await client.next())["type"] != "broker.error"
        assert running.relay.snapshot().failed_answers == {}


@pytest.mark.slow
async def test_calls_failures_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    async def script(talk: AzureTalk) -> None:
        await talk.send(done("failed", SERVER_ERROR))
        await talk.hear("item_1", "Are you there?")

    async with call(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(1)
        await running.quiet()
        assert running.relay.snapshot().failed_answers == {"server_error": 1}
    assert "answer_failed" in capsys.readouterr().out
