"""Every frame that a page gets of a signalled call, or of GPT-Live: no credential and no instruction is in any."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.broker import KEY, broker
from tests.relay.support.media_azure import CREATE, MEDIA, ControlSocket
from tests.relay.test_echoed_secrets import EVENTS, QUOTED, QUOTED_HEADER
from tests.support.agents import TOOL_AUTHORIZATION, agents_with_secrets
from token_broker.sessions.agents import load_agents

Event = dict[str, Any]

INSTRUCTIONS = "canary-instructions"
TOOLS = [
    {
        "type": "mcp",
        "server_label": "docs",
        "authorization": TOOL_AUTHORIZATION,
        "headers": {"X-Key": QUOTED_HEADER},
        "server_url": "https://canary.example.com",
    }
]
SESSION: Event = {"id": "sess_1", "model": "gpt-x", "instructions": INSTRUCTIONS, "tools": TOOLS, "voice": "canary"}
RESPONSE: Event = {"id": "resp_1", "status": "in_progress", "instructions": INSTRUCTIONS, "tools": TOOLS, "output": []}
LIST: Event = {"id": "mcpl_1", "type": "mcp_list_tools", "server_label": "docs", "tools": [{"name": "canary_tool"}]}
SIGNALLED: list[Event] = [
    *EVENTS,
    {"type": "session.updated", "event_id": "s1", "session": SESSION},
    {"type": "rtc.call.updated", "event_id": "s2", "rtc_call_id": "rtc_1", "session": SESSION},
    {"type": "response.created", "event_id": "s3", "response": RESPONSE},
    {"type": "response.done", "event_id": "s4", "response": {**RESPONSE, "status": "completed", "output": [LIST]}},
    {"type": "conversation.item.created", "event_id": "s5", "item": LIST},
    {"type": "mcp_list_tools.failed", "event_id": "s6", "item_id": "mcpl_1", "error": {"message": QUOTED}},
    {"type": "rtc.call.sdp.created", "event_id": "s7", "rtc_call_id": "rtc_1", "sdp_answer": f"v=0 {QUOTED}"},
    {"type": "rtc.call.error", "event_id": "s8", "error": {"type": "server_error", "message": QUOTED}},
]
NESTED: list[Event] = [
    {"type": "response.created", "response": RESPONSE},
    {"type": "response.completed", "response": {**RESPONSE, "output": [LIST]}},
    {"type": "response.output_item.done", "item": LIST},
    {"type": "error", "message": QUOTED},
]
LIVE_SESSION: Event = {
    **SESSION,
    "delegation": {
        "type": "responses",
        "responses": {"model": "gpt-5.4", "instructions": INSTRUCTIONS, "tools": TOOLS},
    },
    "client": {"data_channel": {"note": "canary-client"}},
    "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "canary-history"}]}],
}
LIVE: list[Event] = [
    *[each for each in EVENTS if each["type"] in {"error", "warning"}],
    {"type": "session.updated", "event_id": "l1", "session": LIVE_SESSION},
    *[{"type": "response.event", "event_id": "l2", "delegation_id": "d1", "event": each} for each in NESTED],
    {"type": "info", "event_id": "l3", "code": "note", "message": QUOTED},
    {"type": "session.instructions.appended", "event_id": "l4", "client_event_id": "broker_greeting_0"},
    {"type": "session.usage.updated", "event_id": "l5", "usage": {"seconds": 3}},
    {"type": "session.closed", "event_id": "l6", "reason": "content", "session": LIVE_SESSION, "usage": {"seconds": 3}},
]


def agents_file(folder: Path) -> Path:
    """The agents with secrets, and with instructions that are one; dan talks by GPT-Live."""
    text = agents_with_secrets(QUOTED_HEADER).replace("You are Ann.", INSTRUCTIONS)
    path = folder / "agents.toml"
    live = '[agents.dan]\nname = "Dan"\ninherits = "ann"\nmodel = "gpt-live-1"\ngreeting = "canary-greeting"\n'
    path.write_text(f"{text}{live}", encoding="utf-8")
    return path


async def live_azure(talk: AzureTalk) -> None:
    """Starts a session, and says all that is in `LIVE`."""
    talk.arrived(await talk.connection.recv())
    await talk.send({"type": "session.started", "event_id": "l0", "session": LIVE_SESSION})
    for event in LIVE:
        await talk.send(event)
    await talk.connection.wait_closed()


@pytest.mark.parametrize("way", ["signalled", "live"])
async def test_no_frame_has_a_secret(tmp_path: Path, way: str) -> None:
    agents = load_agents(agents_file(tmp_path))
    is_live = way == "live"
    async with (
        scripted_azure(live_azure if is_live else ControlSocket()) as azure,
        broker(azure.url, agents=agents, voice_live_webrtc="on") as running,
        running.client(path="" if is_live else MEDIA, agent_id="dan" if is_live else "cid") as client,
    ):
        if not is_live:
            await client.send(CREATE)
            await client.until("broker.ready")
            for event in SIGNALLED:
                await azure.talks[0].send(event)
        assert await client.closed() == 4502
        assert INSTRUCTIONS in json.dumps(azure.talks[0].received)
        told = json.dumps([*client.events, client.socket.close_reason])
        for canary in ("canary", KEY):
            assert canary not in told
        expected = {"e1", "l2", "l3", "l5", "l6"} if is_live else {"e1", "s1", "s2", "s4", "s6"}
        assert expected <= {event.get("event_id") for event in client.events}
