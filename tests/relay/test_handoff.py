"""Handoff to another agent in the middle of a talk."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.relay.support.azure import AzureTalk, answer, converse, scripted_azure
from tests.relay.support.broker import broker, build, make_settings, serving
from tests.support.agents import agents_of
from tests.support.waiting import eventually
from token_broker.relay.session import Talk
from token_broker.sessions.agents import AgentRegistry

AGENTS = """
default = "ann"
[agents.ann]
name = "Ann"
voices = { ga = "marin", preview = "ava" }
instructions = "You are Ann."
tools = [{ type = "function", name = "look_up" }]
[agents.ben]
name = "Ben"
voices = { ga = "marin", preview = "ava" }
instructions = "You are Ben."
tools = []
[agents.cid]
name = "Cid"
voices = { ga = "cedar", preview = "guy" }
instructions = "You are Cid."
"""


def agents(tmp_path: Path) -> AgentRegistry:
    return agents_of(tmp_path, AGENTS)


async def test_same_voice_updates_session_in_place(tmp_path: Path) -> None:
    async with scripted_azure() as azure:
        prepared = build(make_settings(azure.url), agents=agents(tmp_path))
        prepared.recall.text = "FACTS"
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            await client.send({"type": "broker.agent.switch", "agent_id": "ben"})
            switched = await client.until("broker.agent.switched")
            assert switched["agent_id"] == "ben"
            talk = await azure.talk()
            update = await talk.next_event("session.update", nth=2)
            assert update["session"] == {"instructions": "You are Ben.", "tools": []}
            note = (await talk.next_event("conversation.item.create"))["item"]
            assert note["content"][0]["text"] == "FACTS"
            assert "FACTS" not in json.dumps(client.events)
            assert running.recall.asked == 1
            await talk.say("item_a", "Ben here.")
            await running.ingest.reach(1)
            assert running.ingest.turns[0].agent_id == "ben"
            assert len(azure.talks) == 1


async def test_other_voice_gets_upstream_with_history(tmp_path: Path) -> None:
    async with scripted_azure() as azure:
        prepared = build(make_settings(azure.url), agents=agents(tmp_path))
        prepared.recall.text = "FACTS"
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            old = await azure.talk()
            await old.hear("item_u", "My name is Kim.")
            await old.say("item_a", "Hello Kim.", previous="item_u")
            await client.until("response.done")
            await client.send({"type": "broker.agent.switch", "agent_id": "cid"})
            await client.until("broker.agent.switched")
            new = await azure.talk(1)
            await old.closed.wait()
            items = [(await new.next_event("conversation.item.create", nth=n))["item"] for n in (1, 2, 3)]
            assert [(item["role"], item["content"][0]) for item in items] == [
                ("user", {"type": "input_text", "text": "FACTS"}),
                ("user", {"type": "input_text", "text": "My name is Kim."}),
                ("assistant", {"type": "text", "text": "Hello Kim."}),
            ]
            assert new.received[0]["session"]["instructions"] == "You are Cid."
            assert new.received[0]["session"]["voice"]["name"] == "guy"
            await new.hear("item_u2", "Who are you?", previous=items[-1]["id"])
            await new.say("item_a2", "I am Cid.", previous="item_u2")
            await client.until("response.done")
            shown = [event["item"]["id"] for event in client.events if event["type"] == "conversation.item.created"]
            assert shown == ["item_a", "item_a2"]
            await running.ingest.reach(4)
            assert [(turn.agent_id, turn.sequence) for turn in running.ingest.turns] == [
                ("ann", 0), ("ann", 1), ("cid", 2), ("cid", 3),
            ]  # fmt: skip


async def test_handoff_ends_and_asks_open_answer(tmp_path: Path) -> None:
    typed = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "My name is Kim."}]}
    async with scripted_azure() as azure:
        prepared = build(make_settings(azure.url), agents=agents(tmp_path))
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            old = await azure.talk()
            await client.send({"type": "conversation.item.create", "item": typed})
            await client.send({"type": "response.create", "event_id": "mine"})
            await old.next_event("response.create")
            await old.send({"type": "response.created", "response": {"id": "resp_ann", "status": "in_progress"}})
            await client.until("response.created")
            await client.send({"type": "broker.agent.switch", "agent_id": "cid"})
            await client.until("broker.agent.switched")
            new = await azure.talk(1)
            assert (await new.next_event("response.create"))["event_id"] == "mine"
            assert (await new.next_event("conversation.item.create"))["item"]["content"] == typed["content"]
            await new.say("item_cid", "Hello Kim.", response_id="resp_cid")
            await client.until("response.done")
            done = [event["response"] for event in client.events if event["type"] == "response.done"]
            assert [(response["id"], response["status"]) for response in done] == [
                ("resp_ann", "cancelled"), ("resp_cid", "completed"),
            ]  # fmt: skip
            await running.ingest.reach(2)
            said = {turn.turn_id: (turn.agent_id, turn.content) for turn in running.ingest.turns}
            assert list(said.values()) == [("ann", "My name is Kim."), ("cid", "Hello Kim.")]


async def test_handoff_keeps_what_was_heard(tmp_path: Path) -> None:
    about = {"response_id": "resp_ann", "item_id": "item_ann", "output_index": 0, "content_index": 0}
    item = {"id": "item_ann", "type": "message", "role": "assistant", "content": []}
    async with scripted_azure() as azure:
        prepared = build(make_settings(azure.url), agents=agents(tmp_path))
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            old = await azure.talk()
            await old.hear("item_u", "What time is it?")
            await old.send({"type": "response.created", "response": {"id": "resp_ann", "status": "in_progress"}})
            await old.send({"type": "response.output_item.added", **about, "item": item})
            await old.send({"type": "response.audio_transcript.delta", **about, "delta": "It is about six"})
            await old.send({"type": "response.audio.delta", **about, "delta": "AAAA" * 8})
            await client.until("response.audio.delta")
            await client.send({"type": "broker.agent.switch", "agent_id": "cid"})
            await client.until("broker.agent.switched")
            done = [event["response"] for event in client.events if event["type"] == "response.done"]
            assert [(response["id"], response["status"]) for response in done] == [("resp_ann", "cancelled")]
            new = await azure.talk(1)
            told = [(await new.next_event("conversation.item.create", nth=n))["item"] for n in (1, 2)]
            assert [part["text"] for each in told for part in each["content"]] == [
                "What time is it?",
                "It is about six",
            ]
            await client.send({"type": "response.create", "event_id": "mine"})
            assert (await new.next_event("response.create"))["event_id"] == "mine", "the other agent does not go on"
            await running.ingest.reach(2)
            assert [(turn.agent_id, turn.content, turn.interrupted) for turn in running.ingest.turns] == [
                ("ann", "What time is it?", False), ("ann", "It is about six", True),
            ]  # fmt: skip


async def test_handoff_closes_the_next_session(tmp_path: Path) -> None:
    async def script(talk: AzureTalk) -> None:
        if talk is azure.talks[0]:  # its end is near, and an answer is open: the talk does not move yet
            session = {"id": "s", "expires_at": time.time() + 200}
            await talk.send({"type": "session.created", "session": session})
            talk.arrived(await talk.connection.recv())
            await talk.send({"type": "session.updated", "session": {**session, **talk.received[0]["session"]}})
            await talk.send({"type": "response.created", "response": {"id": "resp_ann", "status": "in_progress"}})
        await converse(talk)

    async with scripted_azure(script) as azure:
        prepared = build(make_settings(azure.url, idle_timeout_s=2), agents=agents(tmp_path))
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            following = await azure.talk(1)
            await following.next_event("session.update")
            (talk,) = running.relay._talks
            assert isinstance(talk, Talk)

            async def opened() -> bool:
                return talk._resumption._next is not None

            await eventually(opened)
            await client.send({"type": "broker.agent.switch", "agent_id": "cid"})
            await client.until("broker.agent.switched")
            async with asyncio.timeout(15):
                await following.closed.wait()
            assert talk._resumption._next is None
            await client.send({"type": "response.create", "event_id": "mine"})
            await (await azure.talk(2)).next_event("response.create")


async def test_failed_handoff_leaves_talk_unchanged(tmp_path: Path) -> None:
    async with scripted_azure() as azure:
        prepared = build(make_settings(azure.url), agents=agents(tmp_path))
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            azure.refuse = lambda _: answer(503)
            await client.send({"type": "broker.agent.switch", "agent_id": "cid"})
            error = await client.until("broker.error")
            assert (error["code"], error["retryable"]) == ("switch_failed", True)
            await client.send({"type": "response.create"})
            await (await azure.talk()).next_event("response.create")


async def test_refused_handoff_is_brokers_error(tmp_path: Path) -> None:
    async def script(talk: AzureTalk) -> None:
        talk.arrived(await talk.connection.recv())
        await talk.send({"type": "session.updated", "session": {}})
        async for message in talk.connection:
            talk.arrived(message)
            about = {"code": "x", "message": "You are Ben.", "event_id": talk.received[-1].get("event_id")}
            await talk.send({"type": "error", "error": about})

    async with scripted_azure(script) as azure:
        prepared = build(make_settings(azure.url), agents=agents(tmp_path))
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            await client.send({"type": "broker.agent.switch", "agent_id": "ben"})
            assert (await client.until("broker.error"))["code"] == "switch_failed"
            await client.send({"type": "response.create", "event_id": "mine"})
            assert (await client.until("error"))["error"]["event_id"] == "mine"
            assert not any(event["type"] == "error" for event in client.events[:-1])


async def test_unknown_agent_error_lists_known_ones() -> None:
    async with scripted_azure(converse) as azure, broker(azure.url) as running, running.client() as client:
        await client.ready()
        await client.send({"type": "broker.agent.switch", "agent_id": "nobody"})
        error = await client.until("broker.error")
        assert error["code"] == "unknown_agent"
        assert "elena" in error["message"]


@pytest.mark.parametrize(("others", "connections"), [(("cid", "ann"), 11), (("ben", "ann"), 1)])
async def test_handoffs_are_rate_limited(tmp_path: Path, others: tuple[str, str], connections: int) -> None:
    async with scripted_azure() as azure:
        prepared = build(make_settings(azure.url), agents=agents(tmp_path))
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            for number in range(10):
                await client.send({"type": "broker.agent.switch", "agent_id": others[number % 2]})
                await client.until("broker.agent.switched")
            told = sum(len(talk.received) for talk in azure.talks)
            for _ in range(20):
                await client.send({"type": "broker.agent.switch", "agent_id": others[0]})
                error = await client.until("broker.error")
                assert (error["code"], error["retryable"]) == ("too_many_switches", True)
            assert len(azure.talks) == connections
            assert sum(len(talk.received) for talk in azure.talks) == told, "nothing goes to Azure"
            await client.send({"type": "response.create"})
            await azure.talks[-1].next_event("response.create")
            async with running.client(agent_id="ann") as another:
                await another.ready()
                await another.send({"type": "broker.agent.switch", "agent_id": others[0]})
                await another.until("broker.agent.switched")


async def test_early_refusal_spends_no_handoff(tmp_path: Path) -> None:
    async with scripted_azure() as azure:
        prepared = build(make_settings(azure.url), agents=agents(tmp_path))
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            for _ in range(30):
                await client.send({"type": "broker.agent.switch", "agent_id": "nobody"})
                assert (await client.until("broker.error"))["code"] == "unknown_agent"
            await client.send({"type": "broker.agent.switch", "agent_id": "ben"})
            await client.until("broker.agent.switched")


async def test_old_upstreams_history_is_forgotten(tmp_path: Path) -> None:
    async with scripted_azure() as azure:
        prepared = build(make_settings(azure.url), agents=agents(tmp_path))
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            first = await azure.talk()
            await first.hear("item_u", "My name is Kim.")
            await first.say("item_a", "Hello Kim.", previous="item_u")
            await client.until("response.done")
            for number in range(6):
                await client.send({"type": "broker.agent.switch", "agent_id": ("cid", "ann")[number % 2]})
                await client.until("broker.agent.switched")
                await (await azure.talk(number + 1)).next_event("conversation.item.create", nth=2)
            (talk,) = running.relay._talks
            assert isinstance(talk, Talk)
            newest = {event["item"]["id"] for event in azure.talks[-1].received if "item" in event}
            assert talk._restored._hidden == newest
            assert len(newest) == 2
