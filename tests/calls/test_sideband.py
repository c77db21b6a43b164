"""The sideband of a relayed call: its turns are kept whatever happens to the connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from strategies.base import SessionSpec
from tests.relay.support.azure import AzureTalk, Script, ScriptedAzure, scripted_azure
from tests.relay.support.broker import KEY, Running, broker, build, make_settings, serving
from tests.support.agents import write_agents
from token_broker.calls.sideband import CallListener
from token_broker.relay.admission import AdmittedClient
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import DONE, Ending
from token_broker.sessions.agents import Agent, load_agents
from token_broker.sessions.plans import session_spec
from token_broker.tools.guardrail import WordSource
from token_broker.tools.verdict import Verdict
from token_broker.web.requests import uuid7

GUARDED = """
default = "elena"
[agents.elena]
name = "Elena"
voices = { ga = "marin", preview = "ava" }
instructions = "You are Elena."
greeting = "Hello from Contoso."
builtin_tools = ["end_talk"]
guardrail = { url = "https://guard.example.com/check" }
"""


def listen(
    running: Running,
    azure: ScriptedAzure,
    *,
    talk_id: str = "",
    call_id: str = "rtc_1",
    agent_id: str = "elena",
    session_id: str = "",
) -> str:
    """Starts to listen to a call whose place is kept; returns its session."""
    agent = running.agents.get(agent_id)
    assert agent is not None
    session_id = session_id or uuid7()
    lease = running.limits.acquire("anonymous")
    assert lease is not None
    lease.keep(call_id, for_s=60)
    admitted = AdmittedClient(Owner(session_id, "anonymous", 5, talk_id=talk_id), agent, "anonymous", None, 0)
    running.relay._level.begin(admitted.owner)
    about: dict[str, Any] = {"endpoint": azure.url, "call_id": call_id, "resource": "default"}
    running.calls.watch(admitted.owner, admitted.agent, spec=spec_of(running, agent_id), **about)
    return session_id


def spec_of(running: Running, agent_id: str = "elena") -> SessionSpec:
    agent = running.agents.get(agent_id)
    assert agent is not None
    return session_spec(agent, running.settings, recalled="They like tea.")


async def joined(talk: AzureTalk) -> None:
    """Takes the update that is sent on joining; Azure's answer to it has not come yet."""
    assert '"session.update"' in str(await talk.connection.recv())


@asynccontextmanager
async def call(script: Script) -> AsyncIterator[ScriptedAzure]:
    """A call that is over when the script is: from then on Azure knows no such call."""

    async def whole(talk: AzureTalk) -> None:
        await script(talk)
        azure.refuse = no_such_call

    async with scripted_azure(whole) as azure:
        yield azure


def no_such_call(_: Request) -> Response:
    return Response(HTTPStatus.NOT_FOUND, "Not Found", Headers(), b"")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.listener._PAUSES_S", (0.02, 0.02, 0.02))


async def tell_and_end(talk: AzureTalk) -> None:
    await talk.hear("item_u", "Hello?")
    await talk.say("item_a", "Good evening.", previous="item_u")
    await talk.send({"type": "output_audio_buffer.started", "response_id": "resp_1"})
    await talk.send({"type": "output_audio_buffer.stopped", "response_id": "resp_1"})


async def test_call_keeps_turns_and_frees_place() -> None:
    async with call(tell_and_end) as azure, broker(azure.url) as running:
        session_id = listen(running, azure)
        await running.ingest.reach(2)
        assert running.ingest.said == [("user", "Hello?"), ("assistant", "Good evening.")]
        assert {turn.owner.session_id for turn in running.ingest.turns} == {session_id}
        assert {turn.owner.epoch for turn in running.ingest.turns} == {5}
        await running.quiet()
        assert azure.talks[0].path == "/openai/v1/realtime?call_id=rtc_1"
        assert azure.talks[0].headers["api-key"] == KEY
        assert running.relay.snapshot().usage.output_tokens == 20
        assert running.relay.snapshot().turns == 2


async def test_broken_sideband_is_rejoined() -> None:
    async def script(talk: AzureTalk) -> None:
        if len(azure.talks) == 1:
            await talk.hear("item_1", "First.")
            talk.connection.transport.abort()
            return
        await talk.hear("item_2", "Second.")
        await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(2)
        assert running.ingest.said == [("user", "First."), ("user", "Second.")]
        running.limits.end("rtc_1")
        await running.quiet()


@pytest.mark.parametrize("code", [1000, 1001, 1011])
async def test_closed_sideband_is_rejoined(code: int) -> None:
    """The code says nothing of the call: it keeps its place, so that a later block hangs it up."""

    async def script(talk: AzureTalk) -> None:
        if len(azure.talks) == 1:
            await talk.hear("item_1", "First.")
            await talk.connection.close(code)
            return
        await talk.hear("item_2", "Second.")
        await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(2)
        assert running.ingest.said == [("user", "First."), ("user", "Second.")]
        assert running.limits.keeps("rtc_1")
        running.limits.end("rtc_1")
        await running.quiet()


async def test_call_unknown_on_rejoining_is_over() -> None:
    async def script(talk: AzureTalk) -> None:
        azure.refuse = no_such_call
        await talk.connection.close()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.quiet()
        assert len(azure.handshakes) == 4, "once joined, then told three times that there is no such call"


async def test_one_404_on_rejoining_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.listener._PAUSES_S", (0.01,))
    refusals = [HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND]

    def for_a_while(_: Request) -> Response | None:
        return Response(refusals.pop(0), "", Headers(), b"") if azure.talks and refusals else None

    async def script(talk: AzureTalk) -> None:
        if len(azure.talks) == 1:
            await talk.connection.close()
            return
        await talk.hear("item_1", "Still here.")
        await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        azure.refuse = for_a_while
        listen(running, azure)
        await running.ingest.reach(1)
        assert refusals == []
        assert running.limits.keeps("rtc_1")
        running.limits.end("rtc_1")
        await running.quiet()


async def test_azures_word_ends_the_call() -> None:
    async def script(talk: AzureTalk) -> None:
        await talk.hear("item_1", "Goodbye.")
        await talk.send({"type": "error", "error": {"type": "invalid_request_error", "code": "session_expired"}})
        await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.quiet()
        assert running.ingest.said == [("user", "Goodbye.")]
        assert len(azure.talks) == 1


async def test_session_is_sent_on_each_join() -> None:
    """A live sideband is silent until it is written to, and what was changed before it came would go unseen."""

    async def script(talk: AzureTalk) -> None:
        talk.arrived(await talk.connection.recv())
        await talk.send({"type": "session.updated", "session": talk.received[0]["session"]})
        await talk.hear(f"item_{len(azure.talks)}", "Hello.")
        if len(azure.talks) == 1:
            await talk.connection.close()
            return
        await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(2)
        running.limits.end("rtc_1")
        await running.quiet()
        own = spec_of(running).instructions
        assert [[event["session"]["instructions"] for event in talk.received] for talk in azure.talks] == [[own]] * 2
        assert running.relay.snapshot().calls_ended == 0


async def test_rejoin_keeps_what_the_client_may_set() -> None:
    """A lawful change survives a rejoin, no voice is named, and what Azure has refused is left out again."""

    async def script(talk: AzureTalk) -> None:
        talk.arrived(await talk.connection.recv())
        if len(azure.talks) == 1:
            about = {"code": "invalid_value", "param": "session.audio.input.transcription.model"}
            await talk.send({"type": "error", "error": {**about, "event_id": talk.received[0]["event_id"]}})
            talk.arrived(await talk.connection.recv())
            lawful = {"audio": {"input": {"turn_detection": None, "noise_reduction": {"type": "far_field"}}}}
            await talk.send({"type": "session.updated", "session": {**talk.received[1]["session"], **lawful}})
        else:
            await talk.send({"type": "session.updated", "session": {**talk.received[0]["session"], "tools": []}})
            talk.arrived(await talk.connection.recv())
        await talk.hear(f"item_{len(azure.talks)}", "Hello.")
        await running.ingest.reach(len(azure.talks))
        if len(azure.talks) == 1:
            await talk.connection.close()
            return
        await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(2)
        running.limits.end("rtc_1")
        await running.quiet()
        first, second = (talk.received for talk in azure.talks)
        assert len(first) == 2, "nothing is put back that the client may set"
        again, put_back = (event["session"] for event in second)
        assert again == put_back == first[1]["session"]
        assert set(again) == {"type", "instructions", "tools"}, "no voice, no turn detection, no transcription"
        assert [tool["name"] for tool in put_back["tools"]] == ["handoff"]


@pytest.mark.parametrize(
    ("status", "details", "told"),
    [
        ("failed", {"type": "failed", "error": {"code": "server_error"}}, [True]),
        ("incomplete", {"type": "incomplete", "reason": "content_filter"}, [False]),
        ("incomplete", {"type": "incomplete", "reason": "max_output_tokens"}, []),
        ("incomplete", None, []),
        ("cancelled", {"type": "cancelled", "reason": "turn_detected"}, []),
        ("completed", None, []),
    ],
)
async def test_only_real_failures_are_told(status: str, details: object, told: list[bool]) -> None:
    async def script(talk: AzureTalk) -> None:
        await joined(talk)
        for number in range(2):
            response = {
                "id": f"resp_{number}",
                "status": status,
                "status_details": details,
                "output": [],
                "usage": None,
            }
            await talk.send({"type": "response.created", "response": {"id": response["id"]}})
            await talk.send({"type": "response.done", "response": response})
        await talk.hear("item_1", "Well?")

    async with call(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        (page,) = running.calls.streams._open.values()
        await running.ingest.reach(1)
        await running.quiet()
        errors = [event for _, event in page.since(0) if event["type"] == "broker.error"]
        assert [(each["code"], each["retryable"]) for each in errors] == [("answer_failed", each) for each in told * 2]


@pytest.mark.parametrize(
    ("before", "reads", "told", "asked"),
    [
        ([], True, 1, 1),
        ([], False, 1, 0),  # the page asks for its answers by itself
        ([{"type": "output_audio_buffer.started", "response_id": "resp_0"}], True, 1, 0),  # something was said
        (
            [{"type": "input_audio_buffer.speech_started", "item_id": "item_b"}],
            True,
            0,
            0,
        ),  # a barge-in, without reason
    ],
)
async def test_failed_answer_is_asked_for_once_more(
    before: list[dict[str, object]], reads: bool, told: int, asked: int
) -> None:
    async def script(talk: AzureTalk) -> None:
        talk.arrived(await talk.connection.recv())
        if reads:
            page.read_elsewhere(60)
        for number in range(1 + asked):
            await talk.send({"type": "response.created", "response": {"id": f"resp_{number}"}})
            for event in before:
                await talk.send(event)
            await talk.send({"type": "response.done", "response": {"id": f"resp_{number}", "status": "failed"}})
            if number < asked:
                talk.arrived(await talk.connection.recv())
        await talk.hear("item_1", "Well?")
        await running.ingest.reach(1)

    async with call(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        (page,) = running.calls.streams._open.values()
        await running.ingest.reach(1)
        await running.quiet()
        assert [each["type"] for each in azure.talks[0].received[1:]] == ["response.create"] * asked
        errors = [event for _, event in page.since(0) if event["type"] == "broker.error"]
        assert len(errors) == told + asked, "and not a third time"


async def test_often_broken_sideband_is_rejoined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.listener._PAUSES_S", (0.01, 0.01))

    async def script(talk: AzureTalk) -> None:
        if len(azure.talks) < 9:
            talk.connection.transport.abort()
            return
        await talk.hear("item_1", "Still here.")
        await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(1)
        assert running.limits.keeps("rtc_1")
        running.limits.end("rtc_1")
        await running.quiet()


async def test_unknown_call_is_joined_later() -> None:
    refused = 0

    def not_yet(request: Request) -> Response | None:
        nonlocal refused
        if refused < 2:
            refused += 1
            return Response(HTTPStatus.NOT_FOUND, "Not Found", Headers(), b"")
        return None

    async with call(tell_and_end) as azure, broker(azure.url) as running:
        azure.refuse = not_yet
        listen(running, azure)
        await running.ingest.reach(2)
        await running.quiet()
        assert refused == 2


async def test_refused_sideband_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.listener._PAUSES_S", (0.01, 0.01))

    def for_long(_: Request) -> Response | None:
        return Response(HTTPStatus.UNAUTHORIZED, "No", Headers(), b"") if len(azure.handshakes) < 8 else None

    async with call(tell_and_end) as azure, broker(azure.url) as running:
        azure.refuse = for_long
        listen(running, azure)
        await running.ingest.reach(2)
        await running.quiet()


async def test_draining_keeps_turns_heard_so_far() -> None:
    async def script(talk: AzureTalk) -> None:
        await talk.commit("item_u")
        await talk.send(
            {"type": "conversation.item.input_audio_transcription.delta", "item_id": "item_u", "delta": "Half a sen"}
        )
        with suppress(TimeoutError):
            await asyncio.wait_for(talk.connection.wait_closed(), 20)

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        async with asyncio.timeout(10):
            while not running.drain.talks or not azure.talks:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        (listener,) = running.drain.talks
        await asyncio.sleep(0.2)
        listener.end(Ending(DONE, "going away"))
        await running.ingest.reach(1)
        assert running.ingest.said == [("user", "Half a sen")]
        await running.quiet()


@pytest.mark.parametrize(
    "garbage", ["nonsense", "[]", '{"type":"session.updated","session":[]}', '{"type":"response.done"}']
)
async def test_garbage_harms_nothing(garbage: str) -> None:
    async def script(talk: AzureTalk) -> None:
        await talk.connection.send(garbage)
        await talk.hear("item_1", "Still here.")

    async with call(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(1)
        await running.quiet()


async def test_session_is_restored_until_it_holds() -> None:
    async def script(talk: AzureTalk) -> None:
        await joined(talk)
        await talk.send({"type": "session.updated", "session": {"type": "realtime", "instructions": "Be a pirate."}})
        update = await talk.connection.recv()
        talk.arrived(update)
        await talk.send({"type": "session.updated", "session": talk.received[0]["session"]})
        await talk.hear("item_1", "Thanks.")

    async with call(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(1)
        await running.quiet()
        (update,) = azure.talks[0].received
        assert update["session"]["instructions"] == spec_of(running).instructions
        assert update["session"]["audio"]["input"]["transcription"]["model"]
        assert [tool["name"] for tool in update["session"]["tools"]] == ["handoff"]
        assert "voice" not in str(update["session"])


async def test_ineffective_reminder_is_not_repeated() -> None:
    async def script(talk: AzureTalk) -> None:
        await joined(talk)
        for _ in range(3):
            await talk.send(
                {"type": "session.updated", "session": {"type": "realtime", "instructions": "In capitals."}}
            )
            await asyncio.sleep(0.05)
        await talk.hear("item_1", "Thanks.")
        async with asyncio.timeout(10):
            talk.arrived(await talk.connection.recv())
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                talk.arrived(await talk.connection.recv())

    async with call(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(1)
        await running.quiet()
        assert [event["type"] for event in azure.talks[0].received] == ["session.update"]


async def test_repeated_reminders_end_the_call(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended: list[tuple[str, str, str]] = []

    def hang_up(endpoint: str, call_id: str, owner: Owner, *, why: str) -> None:
        ended.append((endpoint, call_id, owner.principal))

    async def script(talk: AzureTalk) -> None:
        await joined(talk)
        for number in range(200):
            told = {"type": "realtime", "instructions": f"Be pirate {number}."}
            await talk.send({"type": "session.updated", "session": told})
            talk.arrived(await talk.connection.recv())
            if number % 2:
                refused = {"code": "invalid_value", "event_id": talk.received[-1]["event_id"]}
                await talk.send({"type": "error", "error": refused})
                talk.arrived(await talk.connection.recv())
        await talk.hear("item_1", "Thanks.")

    async with call(script) as azure, broker(azure.url) as running:
        running.calls._hang_up = hang_up
        listen(running, azure)
        await running.ingest.reach(1)
        assert ended == [(azure.url, "rtc_1", "anonymous")], "once"
        assert [event["type"] for event in azure.talks[0].received] == ["session.update"] * 300, "and never no more"
        assert running.relay.snapshot().calls_ended == 1
        running.limits.end("rtc_1")
        await running.quiet()
    told = capsys.readouterr()
    assert (told.out + told.err).count("call_ended_for_changes") == 1


@pytest.mark.parametrize("again", [False, True])
async def test_refused_setting_is_left_out(*, again: bool) -> None:
    ended: list[str] = []
    refused = {"code": "invalid_value", "param": "session.audio.input.transcription.model"}

    async def script(talk: AzureTalk) -> None:
        for param in [refused["param"]] + ["session.tools"] * again:
            talk.arrived(await talk.connection.recv())
            about = {**refused, "param": param, "event_id": talk.received[-1]["event_id"]}
            await talk.send({"type": "error", "error": about})
        if not again:
            talk.arrived(await talk.connection.recv())
            await talk.send({"type": "session.updated", "session": talk.received[-1]["session"]})
        await talk.hear("item_1", "Thanks.")

    async with call(script) as azure, broker(azure.url) as running:
        running.calls._hang_up = lambda *_, why: ended.append(why)
        listen(running, azure)
        await running.ingest.reach(1)
        status = running.relay.snapshot()
        assert status.settings_left_out == {"default": {"elena": {"session.audio.input.transcription": 1}}}
        assert status.sessions_refused == ({"default": {"elena": 1}} if again else {})
        assert ended == ["Azure refuses the agent's settings"] * again
        second = azure.talks[0].received[1]["session"]
        assert set(second) == {"type", "instructions", "tools"}
        running.limits.end("rtc_1")
        await running.quiet()


async def test_call_is_greeted_checked_and_ended(tmp_path: Path) -> None:
    file = write_agents(tmp_path, GUARDED)
    asked: list[tuple[str, str]] = []
    ended: list[str] = []

    class Hook:
        async def check(self, agent: Agent, owner: Owner, text: str, source: WordSource) -> Verdict:
            del agent, owner
            asked.append((source, text))
            return Verdict("refuse")

    async def script(talk: AzureTalk) -> None:
        await joined(talk)
        talk.arrived(await talk.connection.recv())
        await talk.send({"type": "response.created", "response": {"id": "greeting"}})
        await talk.send({"type": "response.done", "response": {"id": "greeting", "status": "completed"}})
        await talk.hear("item_1", "Bye then.")
        said = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": []}
        end = {"type": "function_call", "id": "i", "call_id": "c", "name": "end_talk", "arguments": "{}"}
        await talk.send({"type": "response.created", "response": {"id": "r"}})
        await talk.send({"type": "output_audio_buffer.started", "response_id": "r"})
        await talk.send({"type": "response.output_item.done", "response_id": "r", "item": end})
        response = {"id": "r", "status": "completed", "output": [said, end]}
        await talk.send({"type": "response.done", "response": response})
        talk.arrived(await talk.connection.recv())
        assert not ended, "it is still heard"
        await talk.send({"type": "output_audio_buffer.stopped", "response_id": "r"})
        await talk.connection.wait_closed()

    def hang_up(endpoint: str, call_id: str, owner: Owner, *, why: str) -> None:
        del endpoint, owner
        ended.append(why)
        running.limits.end(call_id)

    async with call(script) as azure:
        running = build(make_settings(azure.url), agents=load_agents(file), guardrail=Hook())
        async with serving(running):
            running.calls._hang_up = hang_up
            listen(running, azure, talk_id="talk_1")
            await running.quiet()
        kinds = [event["type"] for event in azure.talks[0].received]
        assert kinds == ["response.create", "conversation.item.create"], "and no second goodbye"
        assert "Hello from Contoso." in azure.talks[0].received[0]["response"]["instructions"]
        assert asked == [("speech", "Bye then.")]
        assert ended == ["the agent has ended the talk"]


TYPED = {"type": "message", "id": "t", "role": "user", "content": [{"type": "input_text", "text": "One more thing."}]}


@pytest.mark.parametrize(
    ("said", "goes_on"),
    [
        ({"type": "input_audio_buffer.speech_started"}, True),
        ({"type": "input_audio_buffer.committed", "item_id": "u"}, True),  # push to talk
        ({"type": "conversation.item.added", "item": TYPED}, True),
        ({"type": "conversation.item.added", "item": TYPED | {"role": "assistant"}}, False),
    ],
    ids=["speaks", "pushes", "types", "nobody"],
)
async def test_one_more_thing_takes_the_end_back(said: dict[str, Any], goes_on: bool, tmp_path: Path) -> None:
    file = write_agents(tmp_path, GUARDED.replace('greeting = "Hello from Contoso."\n', ""))
    over = asyncio.Event()
    ended: list[str] = []

    async def script(talk: AzureTalk) -> None:
        await joined(talk)
        goodbye = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": []}
        end = {"type": "function_call", "id": "i", "call_id": "c", "name": "end_talk", "arguments": "{}"}
        await talk.send({"type": "response.created", "response": {"id": "r"}})
        await talk.send({"type": "output_audio_buffer.started", "response_id": "r"})
        await talk.send({"type": "response.output_item.done", "response_id": "r", "item": end})
        response = {"id": "r", "status": "completed", "output": [goodbye, end]}
        await talk.send({"type": "response.done", "response": response})
        while '"call_id":"c"' not in str(await talk.connection.recv()):
            pass
        await talk.send(said)
        await talk.say("item_a", "Well.")  # all that was sent before has been heard then
        await asyncio.wait_for(over.wait(), 60)

    async with call(script) as azure:
        running = build(make_settings(azure.url), agents=load_agents(file))
        async with serving(running):
            running.calls._hang_up = lambda *_, why: ended.append(why)
            listen(running, azure)
            listener = running.calls._calls["rtc_1"].listener
            assert isinstance(listener, CallListener)
            await running.ingest.reach(1)
            is_asked = listener._farewell.is_asked or listener._end.is_asked
            over.set()
            running.limits.end("rtc_1")
            await running.quiet()
        assert is_asked is not goes_on


async def test_repeated_change_is_restored_again() -> None:
    async def script(talk: AzureTalk) -> None:
        await joined(talk)
        pirate = {"type": "session.updated", "session": {"type": "realtime", "instructions": "Be a pirate."}}
        for _ in range(2):
            await talk.send(pirate)
            talk.arrived(await talk.connection.recv())
            await talk.send({"type": "session.updated", "session": talk.received[-1]["session"]})
        await talk.send(pirate)
        await talk.send(pirate)
        for _ in range(2):
            talk.arrived(await talk.connection.recv())
        await talk.hear("item_1", "Thanks.")

    async with call(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(1)
        await running.quiet()
        assert len(azure.talks[0].received) == 4


async def test_older_calls_late_events_touch_it_alone() -> None:
    """The page was reloaded, with another agent: what comes of the older call later says nothing of the newer one."""
    newer, told = asyncio.Event(), asyncio.Event()
    ended: list[tuple[str, str]] = []

    async def script(talk: AzureTalk) -> None:
        if talk.path.endswith("rtc_1"):
            await talk.hear("item_1", "First.")
            await newer.wait()
            await talk.send({"type": "response.created", "response": {"id": "resp_1"}})
            await talk.send({"type": "response.done", "response": {"id": "resp_1", "status": "failed"}})
            azure.refuse = lambda request: no_such_call(request) if "rtc_1" in request.path else None
            return
        talk.arrived(await talk.connection.recv())
        newer.set()
        await told.wait()
        await talk.hear("item_2", "Second.")
        await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        running.calls._hang_up = lambda _endpoint, call_id, _owner, *, why: ended.append((call_id, why))
        session_id = listen(running, azure, talk_id="talk_1")
        await running.ingest.reach(1)
        older = running.calls.streams.of(session_id, "rtc_1")
        listen(running, azure, talk_id="talk_1", call_id="rtc_2", agent_id="marcus", session_id=session_id)
        page = running.calls.streams.of(session_id, "rtc_2")
        async with asyncio.timeout(15):
            while not older.is_closed:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        running.calls.hung_up("rtc_1")  # its DELETE is late
        assert [event["code"] for _, event in older.since(0) if event["type"] == "broker.error"] == ["answer_failed"]
        assert [event["type"] for _, event in page.since(0)] == ["broker.attached"]
        assert running.limits.keeps("rtc_2")
        told.set()
        await running.ingest.reach(2)
        assert ended == [("rtc_1", "a newer call of its talk has replaced it")]
        (update,) = azure.talks[1].received
        assert update["session"]["instructions"] == spec_of(running, "marcus").instructions
        running.limits.end("rtc_2")
        await running.quiet()


async def test_call_never_known_is_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.listener._UNKNOWN_S", 0.5)
    monkeypatch.setattr("token_broker.calls.listener._PAUSES_S", (0.05,))
    ended: list[str] = []

    def hang_up(endpoint: str, call_id: str, owner: Owner, *, why: str) -> None:
        ended.append(call_id)

    async with scripted_azure(tell_and_end) as azure, broker(azure.url) as running:
        azure.refuse = lambda _: Response(HTTPStatus.NOT_FOUND, "Not Found", Headers(), b"")
        running.calls._hang_up = hang_up
        listen(running, azure)
        await running.quiet()
        assert ended == ["rtc_1"]
        assert len(azure.handshakes) > 2
