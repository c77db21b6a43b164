"""Foundry voice agents through the whole broker: the simulator's own agents, opened with a managed identity."""

import json
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.conftest import StartBroker
from tests.support.agents import write_agents
from tests.support.broker import RunningBroker
from tests.support.entra import IdentityEndpoint
from tests.support.signalling import SignallingPage, signalling_page
from tests.support.waiting import eventually
from token_broker.simulator import RunningSimulator

DISABLED, NOT_FOUND, KIND = "is disabled", "no such Foundry agent, or it has no WebRTC", "of a kind"
TOLD: dict[str, tuple[str, str]] = {
    "voice-agent-disabled": (DISABLED, DISABLED),
    "voice-agent-without-webrtc": ("", NOT_FOUND),
    "voice-agent-byom": ("", KIND),
    "voice-agent-hosted": ("", KIND),
    "voice-agent-unknown": (NOT_FOUND, NOT_FOUND),
    "voice-agent": ("", ""),
}
"""What is told of each agent at the simulator, over the proxy and by WebRTC; nothing: it talks."""


def agents_file(folder: Path) -> Path:
    shared = 'voices = { ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }\ninstructions = "canary"\n'
    agents = (
        f'[agents.{name}]\nname = "{name}"\n{shared}foundry_agent = {{ project = "demo", name = "{name}" }}\n'
        for name in TOLD
    )
    return write_agents(folder, 'default = "voice-agent"\n' + "".join(agents))


async def talk(broker: RunningBroker, agent_id: str, transport: str) -> str:
    """Talks, if it can be; what was told where it can't."""
    plan = await broker.plan({"agent_id": agent_id})
    assert plan["token"] is None
    way = next(each for each in plan["connections"] if each["transport"] == transport)
    assert way["dialect"] == "ga"
    if transport == "webrtc_websocket":
        async with signalling_page(way["url"], way["protocols"]) as page:
            return await said(page)
    offered = [Subprotocol(name) for name in way["protocols"]]
    async with connect(way["url"], subprotocols=offered, proxy=None, compression=None) as socket:
        return await said(SignallingPage(socket))


async def said(page: SignallingPage) -> str:
    code = await page.opened()
    if code is not None:
        told = [event for event in page.events if event["type"] == "broker.error"]
        assert (code, told[-1]["code"]) == (4502, "agent_refused")
        return str(told[-1]["message"])
    assert page.events[-1]["upstream"] == "foundry_agent"
    assert await page.ask(said="response.output_audio_transcript.done")
    seen = json.dumps(page.events)
    for hidden in ("canary", "instructions", "simulated voice agent."):
        assert hidden not in seen
    return ""


async def test_each_agent_talks_or_is_told(
    azure: RunningSimulator, identity: IdentityEndpoint, start_broker: StartBroker, tmp_path: Path
) -> None:
    """One agent after the other, at one broker: what is refused is about an agent, and holds no other up."""
    broker = await start_broker(
        azure,
        agents_file=agents_file(tmp_path),
        azure_auth="entra",
        key=None,
        voice_live_webrtc="on",
        proxy_connect_timeout_s=20,  # on a busy machine the first credential takes seconds
    )
    for agent_id, (over_proxy, by_webrtc) in TOLD.items():
        for transport, told in (("websocket_proxy", over_proxy), ("webrtc_websocket", by_webrtc)):
            found = await talk(broker, agent_id, transport)
            assert (told in found) if told else not found, (agent_id, transport)
    await azure.until_calls(0)
    (breaker,) = [each for each in broker.relay.snapshot().upstreams if each.name == "foundry_agent"]
    assert (breaker.breaker, breaker.last_outcome) == ("closed", "connected")
    asked = [each for each in azure.requests if "/protocols/voice" in each.path]
    assert asked
    assert not [each for each in asked if "api-key" in each.header_names or "authorization" not in each.header_names]
    assert identity.resources == ["https://ai.azure.com"]

    async def all_ended() -> bool:
        return not broker.talks.active

    await eventually(all_ended)


async def test_agent_without_webrtc_has_no_such_plan(
    azure: RunningSimulator, identity: IdentityEndpoint, start_broker: StartBroker, tmp_path: Path
) -> None:
    """What each agent has is looked for at the start."""
    del identity
    broker = await start_broker(
        azure, agents_file=agents_file(tmp_path), azure_auth="entra", key=None, voice_live_webrtc="auto"
    )
    for agent_id, (_, by_webrtc) in TOLD.items():
        plan: dict[str, Any] = await broker.plan({"agent_id": agent_id})
        ways = [each["transport"] for each in plan["connections"]]
        assert ways == (["websocket_proxy"] if by_webrtc else ["webrtc_websocket", "websocket_proxy"]), agent_id


async def test_key_opens_no_agent(azure: RunningSimulator, start_broker: StartBroker, tmp_path: Path) -> None:
    broker = await start_broker(azure, agents_file=agents_file(tmp_path), azure_auth="key", voice_live_webrtc="on")
    way = (await broker.plan())["connections"][-1]
    offered = [Subprotocol(name) for name in way["protocols"]]
    async with connect(way["url"], subprotocols=offered, proxy=None, compression=None) as socket:
        assert await SignallingPage(socket).opened() == 4502
    assert not [each for each in azure.requests if "/protocols/voice" in each.path]
