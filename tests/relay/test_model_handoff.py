"""The model hands the talk over, and ends it, by its built-in tools."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.relay.support.broker import Client, Running, build, make_settings, serving
from tests.relay.test_whole_talk import say
from tests.simulator.support import silence, speech
from tests.support.agents import write_agents
from token_broker.relay.session import Talk
from token_broker.sessions.agents import load_agents
from token_broker.simulator import RunningSimulator, SimulatorConfig, run_in_thread

AGENTS = """
default = "ann"
[agents.ann]
name = "Ann"
voices = { ga = "marin", preview = "en-US-AvaNeural" }
instructions = "You are Ann."
greeting = false
builtin_tools = ["handoff", "end_talk"]
tools = [{ type = "function", name = "show_map", run = "client" }]
[agents.ben]
inherits = "ann"
name = "Ben"
instructions = "You are Ben."
greeting = "Ben here."
[agents.cid]
inherits = "ann"
name = "Cid"
voices = { ga = "cedar", preview = "en-US-GuyNeural" }
instructions = "You are Cid."
greeting = "Cid here."
handoff_to = ["ben"]
[agents.dan]
inherits = "ann"
name = "Dan"
instructions = "You are Dan."
handoff_to = []
"""
GOODBYE = "Goodbye, and thank you very much for calling us today."
HANDOFF: dict[str, Any] = {"name": "handoff", "arguments": {"agent_id": "ben", "message": "a plan"}}
MAP: dict[str, Any] = {"name": "show_map", "arguments": {}}


@contextlib.asynccontextmanager
async def talking(
    tmp_path: Path, *, path: str = "", agent_id: str = "ann", speed: float = 20, **settings: Any
) -> AsyncIterator[tuple[RunningSimulator, Running, Client]]:
    file = write_agents(tmp_path, AGENTS)
    with run_in_thread(SimulatorConfig(answer_speed=speed)) as azure:
        chosen = make_settings(azure.base_url, key=SecretStr("simulated-key"), **settings)
        async with (
            serving(build(chosen, agents=load_agents(file))) as running,
            running.client(agent_id=agent_id, path=path) as client,
        ):
            await client.next()
            yield azure, running, client


async def ask(client: Client, text: str = "Go #1") -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    await client.send({"type": "conversation.item.create", "item": item})
    await client.send({"type": "response.create"})


async def answer_map(client: Client) -> None:
    """The page's answer to `show_map`, which the model asked for."""
    while True:
        event = await client.until("response.output_item.done")
        if event["item"].get("name") == "show_map":
            break
    output = {"type": "function_call_output", "call_id": event["item"]["call_id"], "output": "shown"}
    await client.send({"type": "conversation.item.create", "item": output})


async def answers(azure: RunningSimulator, client: Client, count: int) -> list[str]:
    """Who gave the answers, once the client has heard so many."""
    while sum(event["type"] == "response.done" for event in client.events) < count:
        await client.next()
    return [answer.instructions.partition("\n")[0] for answer in azure.transcript.answers]


@pytest.mark.parametrize("path", ["", "/realtime"])
async def test_same_voice_goes_on_in_the_session(tmp_path: Path, path: str) -> None:
    async with talking(tmp_path, path=path) as (azure, running, client):
        azure.script_responses({"calls": [HANDOFF]})
        await ask(client)
        assert await answers(azure, client, 2) == ["You are Ann.", "You are Ben."]
        kinds = [event["type"] for event in client.events]
        assert ("broker.agent.switched" in kinds) == (path == "")
        assert not [kind for kind in kinds if path and kind.startswith("broker.")]
        assert not {"error", "broker.error"} & set(kinds)
        assert "handed this conversation over" not in str(client.events)
        await ask(client, "And #2")
        assert await answers(azure, client, 3) == ["You are Ann.", "You are Ben.", "You are Ben."]
        assert len(azure.transcript.talks) == 1
        assert running.relay.snapshot().handoffs in {0, 1}


@pytest.mark.parametrize("calls", [[MAP, HANDOFF], [HANDOFF, MAP]], ids=["map-handoff", "handoff-map"])
@pytest.mark.parametrize("target", ["ben", "cid"])
async def test_all_outputs_come_first(tmp_path: Path, target: str, calls: list[dict[str, Any]]) -> None:
    named = [{**call, "arguments": {"agent_id": target} if call is HANDOFF else {}} for call in calls]
    async with talking(tmp_path) as (azure, _, client):
        azure.script_responses({"calls": named})
        await ask(client)
        await answer_map(client)
        assert await answers(azure, client, 2) == ["You are Ann.", f"You are {target.capitalize()}."]
        assert azure.transcript.answers[1].follows == "tool"
        assert "greet" not in azure.transcript.answers[1].text
        assert len(azure.transcript.talks) == (1 if target == "ben" else 2)


async def test_handoff_that_fails_is_told(tmp_path: Path) -> None:
    async with talking(tmp_path, proxy_upstreams=("voice_live",)) as (azure, _, client):
        azure.script_responses({"calls": [HANDOFF]})
        with azure.fault("refuse_update", field="instructions"):
            await ask(client)
            assert (await client.until("broker.error"))["code"] == "switch_failed"
        assert await answers(azure, client, 2) == ["You are Ann."] * 2


async def test_handoff_field_refused_is_left_out(tmp_path: Path) -> None:
    async with talking(tmp_path, proxy_upstreams=("voice_live",)) as (azure, running, client):
        azure.script_responses({"calls": [HANDOFF]})
        with azure.fault("refuse_update", field="tools[1].description"):
            await ask(client)
            await client.until("broker.agent.switched")
        assert await answers(azure, client, 2) == ["You are Ann.", "You are Ben."]
        assert running.relay.snapshot().settings_left_out == {"default": {"ben": {"session.tools[1].description": 1}}}


@pytest.mark.slow
async def test_ignored_handoff_leaves_the_session(tmp_path: Path) -> None:
    async with talking(tmp_path, proxy_connect_timeout_s=1.5) as (azure, _, client):
        azure.script_responses({"calls": [HANDOFF]})
        with azure.fault("ignore_update", times=1):
            await ask(client)
            assert (await client.until("broker.resuming"))["reason"] == "refused"
        await client.until("broker.agent.switched")
        assert (await answers(azure, client, 2))[1] == "You are Ben."


async def test_clients_switch_is_bounded(tmp_path: Path) -> None:
    async with talking(tmp_path, agent_id="dan") as (_, _, client):
        await client.send({"type": "broker.agent.switch", "agent_id": "ann"})
        assert (await client.until("broker.error"))["code"] == "agent_not_permitted"


async def test_what_the_model_may_ask(tmp_path: Path) -> None:
    async with talking(tmp_path, agent_id="cid") as (_, running, _):
        (talk,) = running.relay._talks
        assert isinstance(talk, Talk)
        handoff = talk._handoff
        for arguments, told in (
            ("{", "has to be the id"),
            ('{"agent_id": 7}', "has to be the id"),
            ('{"agent_id": "ben", "message": 1}', "has to be the id"),
            ('{"agent_id": "cid"}', "already"),
            ('{"agent_id": "ann"}', "hand over to: ben"),
            ('{"agent_id": "nobody"}', "hand over to: ben"),
        ):
            text, ok = handoff.request_by_model(arguments)
            assert (told in text, ok) == (True, False), arguments
        assert handoff.request_by_model('{"agent_id": "ben"}')[1]
        assert "under way" in handoff.request_by_model('{"agent_id": "ben"}')[0]
        for _ in range(3):
            handoff._wish = None
            assert handoff.request_by_model('{"agent_id": "ben"}')[1]
        handoff._wish = None
        assert "several times" in handoff.request_by_model('{"agent_id": "ben"}')[0]
        handoff.user_spoke()
        assert handoff.request_by_model('{"agent_id": "ben"}')[1]
        handoff._wish = None


# --- end_talk


@pytest.mark.parametrize("path", ["", "/realtime"])
async def test_talk_ends_after_its_goodbye(tmp_path: Path, path: str) -> None:
    async with talking(tmp_path, path=path, idle_timeout_s=10) as (azure, _, client):
        azure.script_responses({"say": GOODBYE, "calls": [{"name": "end_talk"}]})
        loop = asyncio.get_running_loop()
        await ask(client)
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        heard_s = sum(len(event["delta"]) * 0.75 / 48_000 for event in client.events if "audio.delta" in event["type"])
        began_s = loop.time()
        assert await client.closed() == 1000
        assert client.socket.close_reason == "the agent has ended the talk"
        assert heard_s > 1
        assert loop.time() - began_s > heard_s / 2, "most of it was played by then"
        assert len(azure.transcript.answers) == 1, "no second goodbye"
        assert "error" not in [event["type"] for event in client.events]


@pytest.mark.slow
async def test_one_more_thing_takes_it_back(tmp_path: Path) -> None:
    async with talking(tmp_path, idle_timeout_s=10) as (azure, _, client):
        azure.script_responses({"say": GOODBYE, "calls": [{"name": "end_talk"}]})
        await ask(client)
        await client.until("response.done")
        await say(client, speech(1.2, 1) + silence(1.2), real_time=False)
        await client.until("input_audio_buffer.committed")
        while (await client.until("response.done"))["response"]["status"] != "completed":
            pass
        await asyncio.sleep(2)  # longer than the goodbye
        await ask(client, "Still here? #2")
        while not azure.transcript.answers_to("#2"):
            await client.next()


@pytest.mark.slow
async def test_silent_end_says_goodbye_first(tmp_path: Path) -> None:
    async with talking(tmp_path, idle_timeout_s=10) as (azure, _, client):
        azure.script_responses({"calls": [{"name": "end_talk"}]}, {"say": "Goodbye."})
        await ask(client)
        assert await client.closed() == 1000
        assert [answer.text for answer in azure.transcript.answers][1:] == ["Goodbye."]


@pytest.mark.slow
async def test_running_tool_is_answered_first(tmp_path: Path) -> None:
    async with talking(tmp_path, idle_timeout_s=10) as (azure, _, client):
        azure.script_responses({"say": "Goodbye.", "calls": [{"name": "end_talk"}, MAP]}, {"say": "Here is the map."})
        await ask(client)
        await answer_map(client)
        assert await client.closed() == 1000
        assert "Here is the map." in azure.transcript.answers[1].text
