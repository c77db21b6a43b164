"""A guardrail and a greeting in talks with the simulated Azure."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from tests.relay.support.broker import Client, build, make_settings, serving
from tests.relay.test_whole_talk import say
from tests.simulator.support import silence, speech
from tests.support.agents import agents_of
from token_broker.security.tokens import Owner
from token_broker.sessions.agent import Guardrail
from token_broker.sessions.agents import Agent, AgentRegistry
from token_broker.simulator import SimulatorConfig, run_in_thread
from token_broker.simulator.audio import marked
from token_broker.tools.verdict import Verdict

SIMULATED: dict[str, Any] = {"key": SecretStr("simulated-key")}
FAST = SimulatorConfig(answer_speed=20)
AGENTS = """
default = "ann"
[agents.ann]
name = "Ann"
voices = { ga = "marin", preview = "en-US-AvaNeural" }
instructions = "You are Ann."
guardrail = { url = "https://guard.example.com/check", fail = "closed" }
[agents.bob]
inherits = "ann"
name = "Bob"
greeting = "Welcome to Contoso."
guardrail = false
handoff_to = ["ann"]
"""


@dataclass
class Hook:
    """Gives its verdicts in their order, the last one for ever."""

    verdicts: list[Verdict]
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    async def check(self, agent: Agent, owner: Owner, text: str, source: Literal["speech", "typed"]) -> Verdict:
        del owner
        self.asked.append((agent.id, source, text))
        await asyncio.sleep(0)
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]


def agents(tmp_path: Path) -> AgentRegistry:
    return agents_of(tmp_path, AGENTS)


async def answered(client: Client) -> None:
    while (await client.until("response.done"))["response"]["status"] != "completed":
        pass


async def speak(client: Client, number: int) -> None:
    await say(client, marked(speech(1.2, number), number) + silence(1.2), real_time=False)


def kinds(client: Client) -> list[str]:
    return [event["type"] for event in client.events]


@pytest.mark.parametrize("path", ["", "/realtime"])
async def test_speech_is_answered_once_it_is_allowed(tmp_path: Path, path: str) -> None:
    hook = Hook([Verdict("allow")])
    with run_in_thread(FAST) as azure:
        prepared = build(make_settings(azure.base_url, **SIMULATED), agents=agents(tmp_path), guardrail=hook)
        async with serving(prepared) as running, running.client(agent_id="ann", path=path) as client:
            first = await client.next()
            assert first["type"] in {"broker.ready", "session.created"}
            detection = {"type": "server_vad", "create_response": True}
            ga = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
            await client.send({"type": "session.update", "session": ga if path else {"turn_detection": detection}})
            await speak(client, 1)
            await answered(client)
            shown = [event["session"] for event in client.events if event["type"].startswith("session.")]
            assert '"create_response": False' not in str(shown).replace("'", '"')
            await running.ingest.reach(2)
            assert [role for role, _ in running.ingest.said] == ["user", "assistant"]
        assert [source for _, source, _ in hook.asked] == ["speech"]
        (answer,) = azure.transcript.answers
        assert answer.asked_by == "client", "turn detection asked for nothing"


async def test_replaced_speech_is_not_heard(tmp_path: Path) -> None:
    hook = Hook([Verdict("replace", text="Harmless #2.")])
    with run_in_thread(FAST) as azure:
        prepared = build(make_settings(azure.base_url, **SIMULATED), agents=agents(tmp_path), guardrail=hook)
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            await speak(client, 1)
            await answered(client)
            assert kinds(client).count("response.created") == 1
            assert "conversation.item.deleted" in kinds(client)
            await running.ingest.reach(2)
            assert [turn.content for turn in running.ingest.turns if turn.role == "user"] == ["Harmless #2."]
        assert not azure.transcript.answers_to("#1")
        assert len(azure.transcript.answers_to("#2")) == 1


async def test_refused_speech_is_told_so(tmp_path: Path) -> None:
    hook = Hook([Verdict("refuse", say="Not that, please.")])
    with run_in_thread(FAST) as azure:
        prepared = build(make_settings(azure.base_url, **SIMULATED), agents=agents(tmp_path), guardrail=hook)
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            await speak(client, 1)
            await answered(client)
            assert any(kind.endswith("audio.delta") for kind in kinds(client)), "never silence"
            await running.ingest.reach(1)
            assert [turn.role for turn in running.ingest.turns] == ["assistant"]
        assert not azure.transcript.answers_to("#1")


@pytest.mark.parametrize("action", ["allow", "replace", "refuse"])
async def test_check_outlives_its_session(tmp_path: Path, action: Literal["allow", "replace", "refuse"]) -> None:
    judged = asyncio.Event()

    class SlowHook(Hook):
        async def check(self, agent: Agent, owner: Owner, text: str, source: Literal["speech", "typed"]) -> Verdict:
            verdict = await super().check(agent, owner, text, source)
            await judged.wait()
            return verdict

    hook = SlowHook([Verdict(action, text="Harmless #2." if action == "replace" else None), Verdict("allow")])
    with run_in_thread(FAST) as azure:
        registry = agents(tmp_path)
        registry["ann"] = registry["ann"].model_copy(
            update={"guardrail": Guardrail(url="https://guard.example.com", timeout_ms=10_000, fail="closed")}
        )
        prepared = build(make_settings(azure.base_url, **SIMULATED), agents=registry, guardrail=hook)
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            await speak(client, 1)
            await client.until("conversation.item.input_audio_transcription.completed")
            with azure.fault("cut", times=1):
                await client.until("broker.resumed")
            assert not azure.transcript.answers
            judged.set()
            await answered(client)
            await speak(client, 3)
            await answered(client)
        assert len(azure.transcript.answers_to("#3")) == 1
        assert len(azure.transcript.answers_to("#1")) == (action == "allow")
        assert len(azure.transcript.answers_to("#2")) == (action == "replace")
        assert len(azure.transcript.answers) == 2


async def test_typed_words_do_not_get_past(tmp_path: Path) -> None:
    hook = Hook([Verdict("refuse"), Verdict("replace", text="Harmless #2."), Verdict("allow")])
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Bad #1."}]}
    with run_in_thread(FAST) as azure:
        prepared = build(make_settings(azure.base_url, **SIMULATED), agents=agents(tmp_path), guardrail=hook)
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            for _ in range(2):
                await client.send({"type": "conversation.item.create", "item": item})
                await client.send({"type": "response.create"})
                await answered(client)
            await client.send({"type": "input_text.done", "id": "x"})
            assert (await client.until("broker.error"))["code"] == "event_refused"
            await running.ingest.reach(3)
            assert [turn.content for turn in running.ingest.turns if turn.role == "user"] == ["Harmless #2."]
        assert not azure.transcript.answers_to("#1")
        assert len(azure.transcript.answers_to("#2")) == 1


async def test_failed_transcript_is_answered(tmp_path: Path) -> None:
    hook = Hook([Verdict("allow")])
    config = SimulatorConfig(answer_speed=20, transcription_deployments=frozenset({"another"}))
    with run_in_thread(config) as azure:
        settings = make_settings(azure.base_url, proxy_upstreams=("openai_realtime",), **SIMULATED)
        prepared = build(settings, agents=agents(tmp_path), guardrail=hook)
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            await speak(client, 1)
            await answered(client)
            assert "conversation.item.input_audio_transcription.failed" in kinds(client)
        assert not hook.asked
        assert not azure.transcript.answers_to("#1"), "fail = closed: it is refused"


@pytest.mark.slow
@pytest.mark.parametrize("order", [("ann", "bob"), ("bob", "ann")])
async def test_guardrail_comes_and_goes_with_its_agent(tmp_path: Path, order: tuple[str, str]) -> None:
    hook = Hook([Verdict("allow")])
    with run_in_thread(FAST) as azure:
        prepared = build(make_settings(azure.base_url, **SIMULATED), agents=agents(tmp_path), guardrail=hook)
        async with serving(prepared) as running, running.client(agent_id=order[0]) as client:
            await client.ready()
            if order[0] == "bob":
                await answered(client)  # its greeting
            detection = {"type": "server_vad", "silence_duration_ms": 300}
            await client.send({"type": "session.update", "session": {"turn_detection": detection}})
            await client.until("session.updated")
            await client.send({"type": "broker.agent.switch", "agent_id": order[1]})
            await client.until("broker.agent.switched")
            await speak(client, 1)
            await answered(client)
            with azure.fault("cut", times=1):
                await client.until("broker.resumed")
            await speak(client, 2)
            await answered(client)
        asked_by = [answer.asked_by for answer in azure.transcript.answers if answer.follows == "utterance"]
        assert len(azure.transcript.talks) == 2
        assert asked_by == ["client" if order[1] == "ann" else "detection"] * 2
        assert len(hook.asked) == (2 if order[1] == "ann" else 0)


async def test_greeting_comes_once_a_talk(tmp_path: Path) -> None:
    with run_in_thread(FAST) as azure:
        prepared = build(make_settings(azure.base_url, **SIMULATED), agents=agents(tmp_path))
        async with serving(prepared) as running, running.client(agent_id="bob") as client:
            await client.ready()
            await answered(client)
            with azure.fault("cut", times=1):
                await client.until("broker.resumed")
            await speak(client, 1)
            await answered(client)
            await running.ingest.reach(3)
            assert [turn.role for turn in running.ingest.turns] == ["assistant", "user", "assistant"]


async def test_greeting_does_not_interrupt_the_user(tmp_path: Path) -> None:
    typed = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
    with run_in_thread(FAST) as azure:
        prepared = build(make_settings(azure.base_url, **SIMULATED), agents=agents(tmp_path))
        async with serving(prepared) as running, running.client(agent_id="bob") as client:
            await client.send({"type": "conversation.item.create", "item": typed})
            await client.send({"type": "response.create"})
            await client.ready()
            await answered(client)
            await speak(client, 1)
            await answered(client)
            await running.ingest.reach(4)
        assert [answer.follows for answer in azure.transcript.answers] == ["utterance"] * 2
