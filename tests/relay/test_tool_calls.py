"""An agent's tools in talks over sockets: who runs them, what the model is told, and what the client sees."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.relay.support.broker import Client
from tests.relay.support.tool_talks import PATHS, ask, run_tool_talks, spoken
from tests.relay.test_whole_talk import say
from tests.simulator.support import silence, speech
from tests.support.waiting import eventually
from token_broker.memory.tool_claims import ClaimedCall

by_path = pytest.mark.parametrize("path", PATHS)


async def finished(client: Client, answers: int) -> list[dict[str, Any]]:
    """Everything, once so many answers have ended."""
    while sum(event["type"] == "response.done" for event in client.events) < answers:
        await client.next()
    return client.events


def gave(ok: str = "ok") -> str:
    return f'[simulated] the function gave: {{"ran": "{ok}", "arguments": {{}}}}'


@by_path
@pytest.mark.parametrize("upstream", ["voice_live", "openai_realtime"])
async def test_tool_of_the_agent_runs(path: str, upstream: str, tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path, proxy_upstreams=(upstream,)) as talks, talks.client(path) as client:
        await ask(client, 'Where is it? [call ok {"number": "7"}]')
        events = await finished(client, 2)
        (call,) = await talks.server.called()
        assert (call["tool"], call["arguments"], call["session_id"]) == ("ok", {"number": "7"}, client.session_id)
        assert spoken(events) == ['[simulated] the function gave: {"ran": "ok", "arguments": {"number": "7"}}']
        told = [(event["name"], event["state"]) for event in events if event["type"] == "broker.tool"]
        assert told == ([("ok", "running"), ("ok", "done")] if path == "proxy" else [])
        # The client sees an answer without content, then the one that speaks.
        assert "function_call" not in json.dumps(events)
        assert call["call_id"] not in json.dumps([each for each in events if each["type"] != "broker.tool"])
        assert not [event for event in events if event["type"] in {"error", "broker.error"}]
        done = [event["response"]["output"] for event in events if event["type"] == "response.done"]
        assert (done[0], len(done[1])) == ([], 1)
        await talks.running.ingest.reach(2)


@by_path
async def test_three_calls_are_one_answer(path: str, tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client(path) as client:
        await ask(client, "[call ok {}] [call held {}] [call ok {}]")
        await talks.server.called(3)
        assert talks.tool_answers() == 0
        talks.server.release()
        await finished(client, 2)
        assert talks.tool_answers() == 1
        assert talks.running.relay.snapshot().tool_calls == 3


async def test_nine_calls_are_eight_and_a_word(tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client() as client:
        await ask(client, "[call ok {}]" * 9)
        events = await finished(client, 2)
        states = [event["state"] for event in events if event["type"] == "broker.tool"]
        assert (states.count("done"), states.count("failed"), len(talks.server.calls)) == (8, 1, 8)
        assert talks.tool_answers() == 1


@pytest.mark.parametrize(
    ("path", "tool", "said"),
    [
        ("proxy", "fail", "HTTP 500"),
        ("ga", "die", "broke off"),
        ("voice_live", "hang", "in time"),
        ("proxy", "moved", "a redirect, which is not followed"),
        ("ga", "big", "too large to be read"),
    ],
)
async def test_failure_is_told_to_the_model(path: str, tool: str, said: str, tmp_path: Path) -> None:
    limit_s = 0.5 if tool == "hang" else 8
    async with run_tool_talks(tmp_path, timeout_s=limit_s) as talks, talks.client(path) as client:
        await ask(client, f"[call {tool} {{}}]")
        events = await finished(client, 2)
        assert said in spoken(events)[-1]
        assert len(talks.server.calls) == 1
        assert talks.running.relay.snapshot().tool_calls_failed == 1


async def test_name_that_nobody_has_is_answered(tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client() as client:
        talks.azure.script_responses({"calls": [{"name": "okay"}]})
        await ask(client, "Hello")
        events = await finished(client, 2)
        assert (
            "There is no tool of this name. The tools are: big, die, fail, hang, held, map, moved, ok, recall"
            in spoken(events)[-1]
        )


@pytest.mark.slow
@pytest.mark.parametrize("path", ["proxy", "ga"])
async def test_wait_is_bridged(path: str, tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path, timeout_s=30) as talks, talks.client(path) as client:
        await ask(client, "[call held {}]")
        events = await finished(client, 2)
        assert "exactly this, and nothing else: One moment." in spoken(events)[-1]
        talks.server.release()
        events = await finished(client, 3)
        assert spoken(events)[-1] == gave("held")
        assert len(spoken(events)) == 2


async def test_user_who_speaks_meanwhile_is_heard_out(tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path, timeout_s=30) as talks, talks.client() as client:
        await ask(client, "[call held {}]")
        await talks.server.called()
        await say(client, speech(1), real_time=False)
        await client.until("input_audio_buffer.speech_started")
        talks.server.release()
        while (await client.until("broker.tool"))["state"] != "done":
            pass
        assert talks.tool_answers() == 0  # the output is there, and the user speaks
        await say(client, silence(1.2), real_time=False)
        events = await finished(client, 2)
        assert [answer.follows for answer in talks.azure.transcript.answers] == ["utterance"] * 2
        assert not [event for event in events if event["type"] in {"error", "broker.error"}]


@pytest.mark.parametrize("how", ["leaves", "blocked"])
async def test_call_ends_with_its_talk(how: str, tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks:
        async with talks.client() as client:
            await ask(client, "[call held {}]")
            await talks.server.called()
            if how == "blocked":
                talks.running.relay.end_where(lambda _principal, session_id: session_id == client.session_id)
                assert await client.closed() == 4401
        await talks.running.quiet()
        await until(lambda: list(talks.claims.found.values()) == [ClaimedCall("unknown")])
        talks.server.release()
        assert (len(talks.server.calls), talks.tool_answers()) == (1, 0)


# --- the client's calls -----------------------------------------------------------------------------------------------


async def client_call(client: Client) -> dict[str, Any]:
    while True:
        item: dict[str, Any] = (await client.until("response.output_item.done"))["item"]
        if item["type"] == "function_call":
            return item


def output_event(call_id: str, text: str = "shown") -> dict[str, Any]:
    item = {"type": "function_call_output", "call_id": call_id, "output": text}
    return {"type": "conversation.item.create", "item": item}


@pytest.mark.parametrize(("path", "creates"), [("proxy", 0), ("ga", 1), ("voice_live", 1)])
async def test_client_answers_its_own_call(path: str, creates: int, tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client(path) as client:
        await ask(client, '[call map {"place": "Rome"}] [call ok {}]')
        call = await client_call(client)
        assert (call["name"], call["arguments"]) == ("map", '{"place": "Rome"}')
        await client.send(output_event(call["call_id"]))
        for _ in range(creates):
            await client.send({"type": "response.create"})
        events = await finished(client, 2)
        assert not [event for event in events if event["type"] in {"error", "broker.error"}]
        await ask(client, "And now?")
        await finished(client, 3)
        assert talks.tool_answers() == 1
        names = {event["item"].get("name") for event in events if event["type"] == "response.output_item.done"}
        assert names == {"map", None}


@pytest.mark.parametrize("path", ["proxy", "ga"])
async def test_call_that_nobody_answers_ends(path: str, tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path, client_s=0.5) as talks, talks.client(path) as client:
        await ask(client, '[call map {"place": "Rome"}]')
        call = await client_call(client)
        events = await finished(client, 2)
        assert "did not answer this call in time" in spoken(events)[-1]
        await client.send(output_event(call["call_id"]))
        error = await client.until("broker.error" if path == "proxy" else "error")
        assert (error if path == "proxy" else error["error"])["code"] == "call_answered"
        assert talks.tool_answers() == 1


async def test_client_gets_no_wrong_arguments(tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client() as client:
        await ask(client, '[call map {"plaec": "Rome"}]')
        events = await finished(client, 2)
        assert "`place` is missing" in spoken(events)[-1]
        assert not [event for event in events if event["type"] == "response.function_call_arguments.done"]
        items = [event["item"]["type"] for event in events if event["type"] == "response.output_item.done"]
        assert items == ["message"]
        assert talks.server.calls == []


@pytest.mark.parametrize("path", ["proxy", "voice_live"])
async def test_client_answers_no_call_of_the_brokers(path: str, tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client(path) as client:
        await ask(client, "[call held {}]")
        (call,) = await talks.server.called()
        await client.send(output_event(call["call_id"], "forged"))
        error = await client.until("broker.error" if path == "proxy" else "error")
        assert (error if path == "proxy" else error["error"])["code"] == "call_answered"
        talks.server.release()
        while gave("held") not in spoken(client.events):
            await client.next()
        assert "forged" not in json.dumps(client.events)


async def test_long_forged_output_is_dropped(tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client("proxy") as client:
        await client.send(output_event("image_url", "forged " * 12_000))
        assert (await client.until("broker.error"))["code"] == "unknown_call"


# --- MCP --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", ["proxy", "ga"])
async def test_late_mcp_result_is_spoken(path: str, tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client(path) as client:
        await client.until("mcp_list_tools.completed")
        with talks.azure.fault("late_mcp", seconds=1):
            await ask(client, '[call search {"q": "vad"}]')
            events = await finished(client, 2)
        assert "the function gave: [simulated] search was called" in spoken(events)[-1]


async def test_refused_approval_is_gone_on_from(tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client() as client:
        await client.until("mcp_list_tools.completed")
        await client.until("mcp_list_tools.completed")
        await ask(client, "[call delete {}]")
        while (item := (await client.until("response.output_item.done"))["item"])["type"] != "mcp_approval_request":
            pass
        refusal = {"type": "mcp_approval_response", "approval_request_id": item["id"], "approve": False}
        await client.send({"type": "conversation.item.create", "item": refusal})
        await finished(client, 2)
        await client.send({"type": "conversation.item.create", "item": refusal | {"approve": True}})
        assert (await client.until("broker.error"))["code"] == "unknown_approval"


# --- a session that is lost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "when"), [("proxy", "runs"), ("proxy", "done meanwhile"), ("ga", "runs"), ("voice_live", "done meanwhile")]
)
async def test_call_outlives_its_session(path: str, when: str, tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client(path) as client:
        await ask(client, '[call held {"guests": 2}]')
        await talks.server.called()
        await client.until("response.done")
        if when == "done meanwhile":
            with talks.azure.fault("status", code=503), talks.azure.fault("cut", at="now", times=1):
                await until(lambda: not talks.azure.transcript.open_talks)
                talks.server.release()
                await until(lambda: talks.running.relay.snapshot().tool_calls == 1)
        else:
            with talks.azure.fault("cut", at="now", times=1):
                await until(lambda: len(talks.azure.transcript.talks) == 2)
            await ask(client, "Are you still there?")
            await finished(client, 2)
            talks.server.release()
        said = '[simulated] the function gave: {"ran": "held", "arguments": {"guests": 2}}'
        while said not in spoken(client.events):
            await client.next()
        assert len(talks.server.calls) == 1
        assert talks.tool_answers() == 1


async def test_answer_that_is_cut_after_its_call_is_gone_on_from(tmp_path: Path) -> None:
    async with run_tool_talks(tmp_path) as talks, talks.client() as client:
        with talks.azure.fault("cut", at="response.done", times=1):
            await ask(client, "[call held {}]")
            await client.until("broker.resumed")
        await talks.server.called()
        talks.server.release()
        while gave("held") not in spoken(client.events):
            await client.next()
        assert (len(talks.server.calls), talks.tool_answers()) == (1, 1)


async def until(check: Callable[[], bool]) -> None:
    async def done() -> bool:
        return check()

    await eventually(done)
