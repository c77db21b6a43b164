"""Talks over real sockets whose Azure breaks off, falls silent or expires: they go on at another session."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from strategies.base import Dialect
from strategies.resources import Wanted
from tests.relay.support.azure import AzureTalk, ScriptedAzure, answer, converse, scripted_azure
from tests.relay.support.broker import Client, Running, broker
from tests.relay.support.tool_talks import agents_with_tools
from tests.support.waiting import eventually
from token_broker.security.tokens import ANONYMOUS, Owner
from token_broker.sessions.agents import load_agents
from token_broker.sessions.plans import TalkSpecs

Event = dict[str, Any]

OWNER = Owner("session-that-moves", ANONYMOUS, 1)
COMMITTED = {"type": "input_audio_buffer.committed", "item_id": "item_user", "previous_item_id": None}
CREATED = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "output": []}}
ABOUT = {"response_id": "resp_1", "item_id": "item_a", "output_index": 0, "content_index": 0}
ITEM = {"id": "item_a", "type": "message", "role": "assistant", "content": []}
ADDED = {"type": "response.output_item.added", "response_id": "resp_1", "output_index": 0, "item": ITEM}
WORDS = {"type": "response.audio_transcript.delta", **ABOUT, "delta": "It is about six"}
SOUND = {"type": "response.audio.delta", **ABOUT, "delta": "AAAA" * 100}
SOUND_DONE = {"type": "response.audio.done", **ABOUT}
WORDS_DONE = {"type": "response.audio_transcript.done", **ABOUT, "transcript": "It is about six o'clock."}
ITEM_DONE = {"type": "response.output_item.done", "response_id": "resp_1", "output_index": 0, "item": ITEM}
DONE = {"type": "response.done", "response": {"id": "resp_1", "status": "completed"}}
TRANSCRIBED = {
    "type": "conversation.item.input_audio_transcription.completed",
    "item_id": "item_user",
    "content_index": 0,
    "transcript": "What time is it?",
}
APPEND = '{"type":"input_audio_buffer.append","audio":"' + "QUFB" * 800 + '"}'


@contextlib.asynccontextmanager
async def talking(script: Any = converse, **overrides: Any) -> AsyncIterator[tuple[ScriptedAzure, Running, Client]]:
    """A talk on the proxy, ready, at a scripted Azure."""
    async with (
        scripted_azure(script) as azure,
        broker(azure.url, **overrides) as running,
        running.client() as client,
    ):
        await client.until("session.updated")
        yield azure, running, client


async def cut(talk: AzureTalk) -> None:
    talk.connection.transport.abort()


async def resumed(client: Client) -> Event:
    return await client.until("broker.resumed")


def sent(talk: AzureTalk, kind: str) -> list[Event]:
    return [event for event in talk.received if event["type"] == kind]


def hesitant(go_on: asyncio.Event) -> Any:
    """A session after the first one is opened only when the test says so."""
    talks: list[AzureTalk] = []

    async def script(talk: AzureTalk) -> None:
        talks.append(talk)
        if len(talks) > 1:
            await go_on.wait()
        await converse(talk)

    return script


async def speak(client: Client, talk: AzureTalk, events: Sequence[Any]) -> None:
    """The user says something, Azure sends these events, and the client has them."""
    await client.socket.send(APPEND)
    await talk.next_event("input_audio_buffer.append")
    for event in events:
        await talk.send(event)
    await client.until(events[-1]["type"])


@pytest.mark.parametrize(
    ("events", "asked", "told"),
    [
        ([COMMITTED, TRANSCRIBED], 1, 0),
        ([COMMITTED, TRANSCRIBED, CREATED], 1, 1),
        ([COMMITTED, TRANSCRIBED, CREATED, ADDED, WORDS, SOUND], 1, 1),
        ([COMMITTED, TRANSCRIBED, CREATED, ADDED, WORDS, SOUND, SOUND_DONE], 0, 1),
        ([COMMITTED, TRANSCRIBED, CREATED, ADDED, WORDS, SOUND, SOUND_DONE, WORDS_DONE, ITEM_DONE], 0, 1),
        ([COMMITTED, TRANSCRIBED, CREATED, ADDED, WORDS, SOUND, SOUND_DONE, WORDS_DONE, ITEM_DONE, DONE], 0, 1),
    ],
    ids=["commit", "created", "sound", "last sound", "item", "done"],
)
async def test_answer_cut_anywhere_is_asked_once(events: list[Event], asked: int, told: int) -> None:
    async with talking() as (azure, running, client):
        await speak(client, await azure.talk(), events)
        await cut(await azure.talk())
        event = await resumed(client)
        assert (event["resource"], event["upstream"], event["dialect"]) == ("default", "voice_live", "preview")
        after = await azure.talk(1)
        await client.send({"type": "response.cancel"})  # what was replayed came before it
        await after.next_event("response.cancel")
        assert len(sent(after, "response.create")) == asked
        done = [each for each in client.events if each["type"] == "response.done"]
        assert [each["response"]["id"] for each in done] == ["resp_1"] * told
        kinds = [each["type"] for each in client.events]
        assert kinds.count("broker.resuming") == kinds.count("broker.resumed") == 1
    said = dict(running.ingest.said)
    assert said["user"] == "What time is it?"
    assert said.get("assistant", "").startswith("It is about six") is (SOUND in events)
    assert len(running.ingest.said) == len(said)


async def test_answer_goes_on_as_the_agent() -> None:
    async with talking() as (azure, _, client):
        await speak(client, await azure.talk(), [COMMITTED, TRANSCRIBED, CREATED, ADDED, WORDS, SOUND])
        first = sent(await azure.talk(), "session.update")[0]["session"]
        await cut(await azure.talk())
        after = await azure.talk(1)
        asked = (await after.next_event("response.create"))["response"]
        assert asked["instructions"].startswith(first["instructions"])
        assert asked["modalities"] == ["audio", "text"]
        told = [event["item"] for event in sent(after, "conversation.item.create")]
        assert [(item["role"], item["content"][0]["text"]) for item in told] == [
            ("user", "What time is it?"),
            ("assistant", "It is about six"),
        ]
        await resumed(client)
        await after.say("item_b", " o'clock.", response_id="resp_2")
        assert (await client.until("response.created"))["response"]["id"] == "resp_2"
        assert (await client.until("response.done"))["response"]["status"] == "completed"


async def test_speech_without_transcript_is_transcribed_again() -> None:
    async with talking() as (azure, running, client):
        await speak(client, await azure.talk(), [COMMITTED, CREATED])
        await cut(await azure.talk())
        after = await azure.talk(1)
        await after.next_event("response.create")
        kinds = [event["type"] for event in after.received]
        assert kinds == [
            "session.update", "session.update", "input_audio_buffer.append", "input_audio_buffer.commit",
            "response.create", "session.update",
        ][: len(kinds)]  # fmt: skip
        await after.hear("item_new", "What time is it?")
        told = await client.until("conversation.item.input_audio_transcription.completed")
        assert told["item_id"] == "item_user"
        assert sum(event["type"] == "input_audio_buffer.committed" for event in client.events) == 1
        await running.ingest.reach(1)
        assert running.ingest.said == [("user", "What time is it?")]


@pytest.mark.parametrize("compat", ["/v1/realtime", "/voice-live/realtime"])
async def test_official_client_sees_no_brokers_event(compat: str) -> None:
    async with (
        scripted_azure() as azure,
        broker(azure.url) as running,
        running.client(path="/realtime" if compat == "/v1/realtime" else compat) as client,
    ):
        await client.until("session.created")
        talk = await azure.talk()
        await talk.send(CREATED)
        await client.until("response.created")
        await cut(talk)
        assert (await client.until("response.done"))["response"]["status"] == "cancelled"
        after = await azure.talk(1)
        await after.next_event("response.create")
        await after.say("item_b", "Six o'clock.", response_id="resp_2")
        assert (await client.until("response.done"))["response"]["id"] == "resp_2"
        assert not [event for event in client.events if event["type"].startswith(("broker.", "error"))]
        assert sum(event["type"] == "session.created" for event in client.events) == 1


async def test_silent_azure_is_left_and_stays_unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.relay.resume.clocks._SILENT_S", 0.3)
    async with talking(idle_timeout_s=2) as (azure, running, client):
        talk = await azure.talk()
        await speak(client, talk, [COMMITTED, TRANSCRIBED])
        assert (await client.until("broker.resuming"))["reason"] == "silent"
        for late in (CREATED, ADDED, SOUND, {**TRANSCRIBED, "item_id": "item_late"}, DONE):
            with contextlib.suppress(Exception):
                await talk.send(late)
        await resumed(client)
        after = await azure.talk(1)
        await after.next_event("response.create")
        await after.say("item_b", "Six o'clock.", response_id="resp_2")
        assert (await client.until("response.done"))["response"]["id"] == "resp_2"
        assert [event["response"]["id"] for event in client.events if event["type"] == "response.created"] == ["resp_2"]
        assert all(breaker.would_admit for breaker in running.connector.breakers.values())
    assert running.ingest.said == [("user", "What time is it?"), ("assistant", "Six o'clock.")]


async def test_family_that_reasons_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the session's own `model` does not say so: it may name the deployment."""
    monkeypatch.setattr("token_broker.relay.resume.clocks._SILENT_S", 1e9)
    monkeypatch.setattr("token_broker.relay.resume.clocks._REASONING_S", 0.3)
    async with talking(idle_timeout_s=2, model="gpt-realtime-2") as (azure, _, client):
        await speak(client, await azure.talk(), [COMMITTED, TRANSCRIBED])
        assert (await client.until("broker.resuming"))["reason"] == "silent"


async def test_azure_that_takes_nothing_is_left() -> None:
    """Writing stalls while reading hangs: nothing comes, and nothing goes."""
    async with talking(client_write_timeout_s=0.5, idle_timeout_s=20) as (azure, _, client):
        talk = await azure.talk()
        talk.connection.transport.pause_reading()

        async def flood() -> None:
            while True:
                await client.socket.send(APPEND)

        flooding = asyncio.create_task(flood())
        try:
            assert (await client.until("broker.resuming"))["reason"] == "silent"
            await resumed(client)
        finally:
            flooding.cancel()
            talk.connection.transport.resume_reading()
        after = await azure.talk(1)
        await after.next_event("input_audio_buffer.append")


def living(seconds: float) -> Any:
    """A session that Azure ends so soon."""

    async def script(talk: AzureTalk) -> None:
        await talk.send({"type": "session.created", "session": {"id": "s", "expires_at": time.time() + seconds}})
        await converse(talk)

    return script


async def test_talk_leaves_an_ending_session_unasked() -> None:
    async with talking(living(20), idle_timeout_s=5) as (azure, running, client):
        assert (await client.until("broker.resuming"))["reason"] == "expiring"
        await resumed(client)
        await (await azure.talk()).closed.wait()
        await client.send({"type": "input_audio_buffer.clear"})
        await (await azure.talk(1)).next_event("input_audio_buffer.clear")
        assert len(azure.talks) == 2
        assert running.relay.snapshot().resumes == {"default": {"expiring": 1}}


@pytest.mark.parametrize("ahead_s", [-120, 120])
async def test_wrong_clock_does_not_hide_the_end(ahead_s: float) -> None:
    async with scripted_azure(living(20 + ahead_s)) as azure, broker(azure.url) as running:
        azure.clock_ahead_s = ahead_s
        supply, wanted = TalkSpecs(running.settings, OWNER, None).of(running.agents["elena"]), Wanted("s", "elena")
        upstream = await running.connector.connect(supply, wanted=wanted)
        assert upstream.expires_s is not None
        assert upstream.expires_s - asyncio.get_running_loop().time() == pytest.approx(20, abs=5)
        await upstream.socket.aclose()


async def test_ending_session_is_used_where_no_other_is() -> None:
    async with talking(living(20), idle_timeout_s=2, proxy_connect_timeout_s=0.3) as (azure, running, client):
        azure.refuse = lambda _: answer(503)

        async def asked() -> bool:
            return len(azure.handshakes) > 2

        await eventually(asked)
        told = await client.until("broker.error")
        assert (told["code"], told["retryable"]) == ("session_expiring", True)
        await client.send({"type": "input_audio_buffer.clear"})
        await (await azure.talk()).next_event("input_audio_buffer.clear")
        assert running.relay.active == 1
        assert client.events[-1]["type"] != "broker.resuming"


async def test_default_assistant_is_not_talked_to() -> None:
    def confirms(talk: AzureTalk) -> Any:
        return {"instructions": "You are a helpful assistant."} if len(talks) == 2 else {}

    talks: list[AzureTalk] = []

    async def script(talk: AzureTalk) -> None:
        talks.append(talk)
        await talk.send({"type": "session.created", "session": {"id": "s"}})
        async for message in talk.connection:
            talk.arrived(message)
            if talk.received[-1]["type"] == "session.update":
                session = {**talk.received[-1]["session"], **confirms(talk)}
                await talk.send({"type": "session.updated", "session": session})

    async with talking(script) as (azure, _, client):
        await speak(client, await azure.talk(), [COMMITTED, TRANSCRIBED])
        await cut(await azure.talk())
        await resumed(client)
        reasons = [event["reason"] for event in client.events if event["type"] == "broker.resuming"]
        assert reasons == ["lost", "refused"]
        assert len(talks) == 3
        assert [event["type"] for event in talks[1].received] == ["session.update"]
        await talks[2].next_event("response.create")


async def test_clients_changes_survive() -> None:
    async with talking() as (azure, _, client):
        detection = {"type": "server_vad", "threshold": 0.3}
        await client.send({"type": "session.update", "session": {"turn_detection": detection}})
        await client.until("session.updated")
        await cut(await azure.talk())
        await resumed(client)
        updates = sent(await azure.talk(1), "session.update")
        assert [update["session"].get("turn_detection", {}).get("threshold") for update in updates] == [0.6, 0.3]


def refusing(refuses: Callable[[int, Event], Event | None]) -> Any:
    """Azure, which refuses an update of its nth session where `refuses` gives an error."""
    talks: list[AzureTalk] = []

    async def script(talk: AzureTalk) -> None:
        talks.append(talk)
        number = len(talks)
        await talk.send({"type": "session.created", "session": {"id": "s"}})
        async for message in talk.connection:
            talk.arrived(message)
            event = talk.received[-1]
            if event["type"] != "session.update":
                continue
            if (error := refuses(number, event["session"])) is None:
                await talk.send({"type": "session.updated", "session": {"id": "s", **event["session"]}})
            else:
                about = {"event_id": event.get("event_id")} | error
                await talk.send({"type": "error", "error": {"type": "invalid_request_error", "message": "x"} | about})

    return script


LAW = {"input_audio_format": "g711_ulaw"}
LOUD = {"turn_detection": {"type": "server_vad", "threshold": 0.9}}


@pytest.mark.parametrize("event_id", [None, "mine"])
@pytest.mark.parametrize("error", [{}, {"param": "session.turn_detection.threshold"}], ids=["nameless", "named"])
async def test_change_that_azure_refused_is_not_carried_over(error: Event, event_id: str | None) -> None:
    script = refusing(lambda number, session: error if number == 1 and "0.9" in json.dumps(session) else None)
    named = {} if event_id is None else {"event_id": event_id}
    async with talking(script) as (azure, _, client):
        await client.send({"type": "session.update", "session": LOUD, **named})
        await client.send({"type": "session.update", "session": LAW})
        await client.until("error")
        await client.until("session.updated")
        await cut(await azure.talk())
        await resumed(client)
        updates = sent(await azure.talk(1), "session.update")
        assert [update["session"] for update in updates[1:]] == [LAW]


@pytest.mark.parametrize("error", [{}, {"param": "session.turn_detection"}], ids=["nameless", "named"])
async def test_formats_survive_what_the_next_session_refuses(error: Event) -> None:
    script = refusing(lambda number, session: error if number == 2 and "0.9" in json.dumps(session) else None)
    async with talking(script) as (azure, _, client):
        await client.send({"type": "session.update", "session": {**LAW, **LOUD}})
        await client.until("session.updated")
        await cut(await azure.talk())
        await resumed(client)
        updates = sent(await azure.talk(1), "session.update")
        assert [update["session"] for update in updates[1:]] == [{**LAW, **LOUD}, LAW]


async def test_session_without_the_clients_formats_is_no_talk() -> None:
    script = refusing(lambda number, session: {} if number == 2 and "g711" in json.dumps(session) else None)
    async with talking(script) as (azure, _, client):
        await client.send({"type": "session.update", "session": LAW})
        await client.until("session.updated")
        await cut(await azure.talk())
        await resumed(client)
        reasons = [event["reason"] for event in client.events if event["type"] == "broker.resuming"]
        assert reasons == ["lost", "refused"]
        assert len(azure.talks) == 3


async def test_fourth_loss_within_a_minute_closes_4502() -> None:
    error = {"code": "insufficient_quota", "message": "secret of Azure"}
    failed = {"id": "r", "status": "failed", "status_details": {"type": "failed", "error": error}}

    async def script(talk: AzureTalk) -> None:
        await talk.send({"type": "session.created", "session": {"id": "s"}})
        async for message in talk.connection:
            talk.arrived(message)
            if talk.received[-1]["type"] == "session.update":
                await talk.send({"type": "session.updated", "session": talk.received[-1]["session"]})
            elif talk.received[-1]["type"] == "response.create":
                await talk.send({"type": "response.created", "response": {"id": "r"}})
                await talk.send({"type": "response.done", "response": failed})
                await talk.connection.close(1011)

    async with talking(script) as (azure, running, client):
        await client.send({"type": "response.create"})
        assert await client.closed() == 4502
        reason = "Azure closed the connection (insufficient_quota): ask for a new plan"
        assert client.socket.close_reason == reason
        assert len(azure.talks) == 4
        assert running.relay.snapshot().resumes == {"default": {"lost": 3, "failed": 1}}


@pytest.mark.parametrize(
    ("kind", "code", "reason"),
    [
        ("insufficient_quota", "insufficient_quota", "refused"),
        ("tokens", "rate_limit_exceeded", "refused"),
        ("server_error", None, "refused"),
        ("invalid_request_error", "invalid_value", "lost"),
    ],
)
async def test_end_after_an_error_is_a_refusal(kind: str, code: str | None, reason: str) -> None:
    async with talking() as (azure, running, client):
        talk = await azure.talk()
        await talk.send({"type": "error", "error": {"type": kind, "code": code, "message": "x"}})
        await client.until("error")
        await cut(talk)
        assert (await client.until("broker.resuming"))["reason"] == reason
        await resumed(client)
        assert running.relay.snapshot().resumes == {"default": {reason: 1}}


@pytest.mark.parametrize(("code", "health"), [("insufficient_quota", "good"), ("invalid_value", "failing")])
async def test_end_at_a_limit_is_not_the_resources(code: str, health: str) -> None:
    async with talking(breaker_failures=1) as (azure, running, client):
        talk = await azure.talk()
        await talk.send({"type": "error", "error": {"type": "invalid_request_error", "code": code, "message": "x"}})
        await client.until("error")
        await cut(talk)
        await client.until("broker.resuming")
        (resource,) = running.connector.pool.snapshot()
        assert resource.health.value == health


async def test_time_proves_no_answer_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.relay.azure.route._PROVEN_AFTER_S", 0.05)
    async with talking() as (azure, running, client):
        proven: list[object] = []
        monkeypatch.setattr(running.connector.pool, "succeeded", proven.append)
        await (await azure.talk()).send(CREATED)
        await client.until("response.created")
        await asyncio.sleep(0.1)
        assert not proven
        await (await azure.talk()).send(DONE)
        await client.until("response.done")
        assert len(proven) == 1


async def test_gap_is_handed_over_in_order() -> None:
    confirm = asyncio.Event()

    async with talking(hesitant(confirm)) as (azure, _, client):
        typed = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello?"}]}
        await cut(await azure.talk())
        await client.until("broker.resuming")
        await client.send({"type": "response.cancel"})  # nothing is active
        await client.send({"type": "conversation.item.create", "item": typed})
        await client.send({"type": "response.create"})
        await client.socket.send(APPEND)
        await client.send({"type": "input_audio_buffer.commit"})
        await client.send({"type": "input_audio_buffer.commit"})  # nothing was said since
        for _ in range(5):
            await client.send({"type": "conversation.item.create", "item": typed | {"x": "y" * 250_000}})
        for _ in range(5):
            await client.send({"type": "conversation.item.create", "item": typed | {"x": "y" * 250_000}})
        assert (await client.until("broker.error"))["code"] == "gap_full"
        confirm.set()
        await resumed(client)
        error = await client.until("broker.error")
        while error["code"] == "gap_full":
            error = await client.until("broker.error")
        assert error["code"] == "input_audio_buffer_commit_empty"
        after = await azure.talk(1)
        await after.next_event("input_audio_buffer.commit")
        assert [event["type"] for event in after.received][:5] == [
            "session.update", "conversation.item.create", "response.create", "input_audio_buffer.append",
            "input_audio_buffer.commit",
        ]  # fmt: skip


async def test_clients_question_takes_the_place_of_ours() -> None:
    confirm = asyncio.Event()
    async with talking(hesitant(confirm)) as (azure, _, client):
        await speak(client, await azure.talk(), [COMMITTED, TRANSCRIBED, CREATED])
        await cut(await azure.talk())
        await client.until("broker.resuming")
        await client.send({"type": "response.create", "event_id": "mine"})
        await client.send({"type": "input_audio_buffer.clear"})
        await azure.talk(1)
        confirm.set()
        await resumed(client)
        after = await azure.talk(1)
        await after.next_event("input_audio_buffer.clear")
        assert [event["event_id"] for event in sent(after, "response.create")] == ["mine"]


async def test_cancel_reaches_a_session_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.relay.resume.resumption._BURST_CHARS", 1_000)
    monkeypatch.setattr("token_broker.relay.resume.resumption._BURST_PAUSE_S", 0.1)
    async with talking() as (azure, _, client):
        await speak(client, await azure.talk(), [COMMITTED, CREATED])
        await cut(await azure.talk())
        await resumed(client)
        after = await azure.talk(1)
        await after.next_event("input_audio_buffer.append")  # and a pause, before the question
        await client.send({"type": "response.cancel", "response_id": "resp_1"})
        cancel = await after.next_event("response.cancel")
        assert "response_id" not in cancel
        kinds = [event["type"] for event in after.received]
        assert kinds.index("response.create") < kinds.index("response.cancel")
        await after.hear("item_again", "What time is it?")
        await client.until("conversation.item.input_audio_transcription.completed")


async def test_client_leaving_in_the_gap_leaves_nothing() -> None:
    hang = asyncio.Event()
    async with talking(hesitant(hang), proxy_connect_timeout_s=30) as (azure, running, client):
        await cut(await azure.talk())
        await client.until("broker.resuming")
        await azure.talk(1)
        await client.socket.close()
        await running.quiet()
        hang.set()

        async def closed() -> bool:
            return not azure.open

        await eventually(closed)


async def test_truncate_of_a_restored_answer_is_answered() -> None:
    async with talking() as (azure, running, client):
        whole = [COMMITTED, TRANSCRIBED, CREATED, ADDED, WORDS, SOUND, SOUND_DONE, WORDS_DONE, ITEM_DONE, DONE]
        await speak(client, await azure.talk(), whole)
        await cut(await azure.talk())
        await resumed(client)
        truncate = {"type": "conversation.item.truncate", "item_id": "item_a", "content_index": 0, "audio_end_ms": 3}
        await client.send(truncate)
        assert (await client.until("conversation.item.truncated"))["audio_end_ms"] == 3
        await client.send({"type": "conversation.item.delete", "item_id": "item_a"})
        after = await azure.talk(1)
        assert (await after.next_event("conversation.item.delete"))["item_id"] == "item_a"
        assert sent(after, "conversation.item.truncate") == []
    assert len(running.ingest.turns) == 2


async def test_call_of_a_lost_session_gets_its_output(tmp_path: Path) -> None:
    call = {"id": "item_c", "type": "function_call", "status": "completed", "call_id": "call_1", "name": "map"}
    call |= {"arguments": '{"place":"Rome"}'}
    file = tmp_path / "agents.toml"
    file.write_text(agents_with_tools(None))
    async with talking(agents=load_agents(file)) as (azure, _, client):
        talk = await azure.talk()
        await talk.send(CREATED)
        await talk.send({**ADDED, "item": call})
        await talk.send({**ITEM_DONE, "item": call})
        await talk.send(DONE)
        await client.until("response.done")
        await cut(talk)
        await resumed(client)
        output = {"type": "function_call_output", "call_id": "call_1", "output": "booked"}
        await client.send({"type": "conversation.item.create", "item": output})
        await client.send({"type": "response.create"})
        after = await azure.talk(1)
        await after.next_event("response.create")
        told = [event["item"] for event in sent(after, "conversation.item.create")]
        assert [item["type"] for item in told] == ["function_call", "function_call_output"]
        assert told[1]["output"] == "booked"


@pytest.mark.parametrize("dialect", ["preview", "ga"])
async def test_talk_may_go_on_in_the_other_dialect(dialect: Dialect) -> None:
    first = "voice_live" if dialect == "preview" else "openai_realtime"
    other = "openai_realtime" if dialect == "preview" else "voice_live"
    async with talking(proxy_upstreams=(first, other)) as (azure, _, client):
        talk = await azure.talk()
        await talk.hear("item_user", "What time is it?")
        await client.until("conversation.item.input_audio_transcription.completed")
        await client.send(
            {"type": "session.update", "session": {"turn_detection": None}}
            if dialect == "preview"
            else {
                "type": "session.update",
                "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}},
            }
        )
        await client.until("session.updated")
        path = "/voice-live/" if dialect == "preview" else "/openai/"
        azure.refuse = lambda request: answer(503) if path in request.path else None
        await cut(talk)
        event = await resumed(client)
        assert (event["upstream"], event["dialect"]) == (other, "ga" if dialect == "preview" else "preview")
        session = json.dumps(sent(await azure.talk(1), "session.update")[1]["session"])
        assert '"turn_detection": null' in session


async def test_broken_off_handoff_takes_place() -> None:
    async def script(talk: AzureTalk) -> None:
        await talk.send({"type": "session.created", "session": {"id": "s"}})
        async for message in talk.connection:
            talk.arrived(message)
            update = talk.received[-1]
            if update["type"] == "session.update" and "handoff" not in update["event_id"]:
                await talk.send({"type": "session.updated", "session": update["session"]})

    async with talking(script) as (azure, running, client):
        other = next(
            agent
            for agent in running.agents.values()
            if agent.id != "elena" and agent.voices["preview"] == running.agents["elena"].voices["preview"]
        )
        await client.send({"type": "broker.agent.switch", "agent_id": other.id})
        await (await azure.talk()).next_event("session.update", nth=2)
        await cut(await azure.talk())
        await resumed(client)
        assert (await client.until("broker.agent.switched"))["agent_id"] == other.id
        assert sent(await azure.talk(1), "session.update")[0]["session"]["instructions"] == other.instructions
