"""Resumed talks at the simulated Azure, whose own transcript says what was answered."""

from typing import Any

import pytest
from pydantic import SecretStr

from strategies.base import Dialect
from tests.relay.support.broker import Client, Running, broker
from tests.relay.test_whole_talk import say
from tests.simulator.support import silence, speech
from token_broker.simulator import RunningSimulator, SimulatorConfig, run_in_thread
from token_broker.simulator.audio import marked

SIMULATED: dict[str, Any] = {"key": SecretStr("simulated-key")}
FAST = SimulatorConfig(answer_speed=20)


async def answered(client: Client) -> None:
    while (await client.until("response.done"))["response"]["status"] != "completed":
        pass


def judge(azure: RunningSimulator, key: str) -> None:
    """One answer to the utterance, and nobody heard the default persona."""
    whole = [
        each for each in azure.transcript.answers_to(key) if each.status == "completed" and each.follows == "utterance"
    ]
    assert len(whole) <= 1, whole
    assert any(each.status == "completed" for each in azure.transcript.answers_to(key))
    assert not [each for each in azure.transcript.answers if each.default_persona and each.was_heard]


async def talk_on(client: Client, number: int) -> None:
    await say(client, marked(speech(1.2, number), number) + silence(1.2), real_time=False)
    await answered(client)


@pytest.mark.parametrize(
    ("at", "upstream"),
    [
        ("speech_started", "voice_live"),
        ("speech_stopped", "openai_realtime"),
        ("committed", "voice_live"),
        ("response.created", "openai_realtime"),
        ("sound", "voice_live"),
        ("last_content", "openai_realtime"),
    ],
)
async def test_cut_talk_gets_one_answer(at: str, upstream: str) -> None:
    with run_in_thread(FAST) as azure:
        settings = SIMULATED | {"proxy_upstreams": (upstream,)}
        async with broker(azure.base_url, **settings) as running, running.client() as client:
            await client.ready()
            with azure.fault("cut", at=at, ms=300, times=1):
                await say(client, marked(speech(1.2, 1), 1) + silence(1.2), real_time=False)
                await client.until("broker.resumed")
            if at != "last_content":  # then all was heard, and nothing is asked
                await answered(client)
            await talk_on(client, 2)
            await heard(running, 4)
        if at != "last_content":
            judge(azure, "#1")
        judge(azure, "#2")


async def heard(running: Running, turns: int) -> None:
    await running.ingest.reach(turns)
    users = [content for role, content in running.ingest.said if role == "user"]
    assert ["#1" in content for content in users] == [True, False]


async def test_strict_azure_takes_the_history() -> None:
    with run_in_thread(FAST) as azure:
        async with broker(azure.base_url, **SIMULATED) as running, running.client() as client:
            await client.ready()
            await talk_on(client, 1)
            await running.ingest.reach(2)
            with azure.fault("strict_history"), azure.fault("text_answers", after=1):
                with azure.fault("cut", times=1):
                    await client.until("broker.resumed")
                await talk_on(client, 2)
            kinds = {event["type"] for event in client.events[-30:]}
            assert "response.audio.delta" in kinds
            assert "broker.error" not in kinds
        judge(azure, "#2")


async def test_text_after_restored_turns_proves_nothing() -> None:
    with run_in_thread(FAST) as azure:
        async with broker(azure.base_url, **SIMULATED) as running, running.client() as client:
            await client.ready()
            await talk_on(client, 1)
            await running.ingest.reach(2)
            with azure.fault("text_answers", after=1, unless_said="nowhere"):
                with azure.fault("cut", times=1):
                    await client.until("broker.resumed")
                (talk,) = running.relay._talks
                assert talk._upstream is not None
                health = talk._upstream.health
                assert health is not None
                await talk_on(client, 2)
                assert not health._proven, "it was an answer in text where sound was due"
                azure.set_faults()
                await client.send({"type": "response.create"})
                await answered(client)


@pytest.mark.slow
async def test_ignored_settings_are_no_talk() -> None:
    limit: dict[str, Any] = SIMULATED | {"proxy_connect_timeout_s": 3.0}
    with run_in_thread(FAST) as azure:
        async with broker(azure.base_url, **limit) as running, running.client() as client:
            await client.ready()
            with azure.fault("ignore_update"), azure.fault("cut", times=1):
                assert await client.closed() == 4502
        assert not [each for each in azure.transcript.answers if each.default_persona]
        assert "broker.resumed" not in [event["type"] for event in client.events]


@pytest.mark.parametrize("upstream", ["voice_live", "openai_realtime"])
@pytest.mark.parametrize("spoken", [False, True], ids=["typed", "spoken"])
async def test_handoff_in_an_answer_leaves_none_open(spoken: bool, upstream: str) -> None:
    with run_in_thread(SimulatorConfig()) as azure:
        settings = SIMULATED | {"proxy_upstreams": (upstream,)}
        async with broker(azure.base_url, **settings) as running, running.client() as client:
            await client.ready()
            dialect: Dialect = "preview" if upstream == "voice_live" else "ga"
            voice = running.agents["elena"].voices[dialect]
            other = next(agent for agent in running.agents.values() if agent.voices[dialect] != voice)
            if spoken:
                await say(client, marked(speech(1.2, 1), 1) + silence(1.2), real_time=False)
            else:
                typed = [{"type": "input_text", "text": "What time is it?"}]
                item = {"type": "message", "role": "user", "content": typed}
                await client.send({"type": "conversation.item.create", "item": item})
                await client.send({"type": "response.create"})
            opened = await client.until("response.created")
            await client.send({"type": "broker.agent.switch", "agent_id": other.id})
            await client.until("broker.agent.switched")
            ended = [event["response"]["id"] for event in client.events if event["type"] == "response.done"]
            assert ended == [opened["response"]["id"]]
            if not any(event["type"].endswith("audio.delta") for event in client.events):
                await answered(client)  # nothing of it was heard: the other agent is asked
            await talk_on(client, 2)
            kinds = {event["type"] for event in client.events}
            assert not kinds & {"error", "broker.error", "broker.resuming"}
        judge(azure, "#2")
