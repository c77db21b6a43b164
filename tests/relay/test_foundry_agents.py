"""Agents that are defined at Azure: over the proxy, and by WebRTC that the broker signals."""

from pathlib import Path
from typing import Any

import pytest

from tests.relay.support.azure import AzureTalk, answer, scripted_azure
from tests.relay.support.broker import ENTRA_TOKEN, broker
from tests.relay.support.media_azure import CREATE, MEDIA, ControlSocket
from tests.support.agents import agents_of

AGENTS = """
default = "elena"
[agents.elena]
name = "Elena"
voices = { ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }
instructions = "You are Elena."
foundry_agent = { project = "demo", name = "elena-voice", version = "3" }
"""
PATH = (
    "/api/projects/demo/agents/elena-voice/endpoint/protocols/voice?api-version=v1"
    "&foundry_features=VoiceAgents%3DV1Preview&x-agent-version-override=3"
)


@pytest.fixture
def agents(tmp_path: Path) -> Any:
    return agents_of(tmp_path, AGENTS)


async def foundry(talk: AzureTalk) -> None:
    """The session is that of the definition, whatever anybody says."""
    session = {"type": "realtime", "id": "sess_1", "instructions": "canary-definition"}
    await talk.send({"type": "session.created", "session": session})
    async for message in talk.connection:
        talk.arrived(message)


async def test_proxy_carries_it(agents: Any) -> None:
    async with (
        scripted_azure(foundry) as azure,
        broker(azure.url, agents=agents, azure_auth="entra", voice_live_webrtc="on") as running,
        running.client() as client,
    ):
        ready = await client.ready()
        assert (ready["dialect"], ready["upstream"]) == ("ga", "foundry_agent")
        shown = await client.until("session.created")
        assert "instructions" not in shown["session"]
        talk = await azure.talk()
        assert talk.path == PATH
        assert talk.headers["authorization"] == f"Bearer {ENTRA_TOKEN}"
        assert "api-key" not in talk.headers
        await client.send({"type": "response.create"})
        await talk.next_event("response.create")
        assert [event["type"] for event in talk.received] == ["response.create"]  # the broker states no session


async def test_webrtc_is_signalled(agents: Any) -> None:
    behaviour = ControlSocket(shows=lambda _session: {"type": "realtime", "instructions": "canary-definition"})
    async with (
        scripted_azure(behaviour) as azure,
        broker(azure.url, agents=agents, azure_auth="entra", voice_live_webrtc="on") as running,
        running.client(path=MEDIA) as client,
    ):
        await client.send(CREATE)
        await client.until("rtc.call.sdp.created")
        ready = await client.next()
        assert (ready["type"], ready["dialect"], ready["upstream"]) == ("broker.ready", "ga", "foundry_agent")
        talk = await azure.talk()
        assert talk.path == f"{PATH}&transport=webrtc"
        assert "session" not in talk.received[0]


@pytest.mark.parametrize(("status", "told"), [(409, "disabled"), (404, "no such Foundry agent"), (400, "of a kind")])
@pytest.mark.parametrize("path", ["", MEDIA])
async def test_refusal_is_told(agents: Any, status: int, told: str, path: str) -> None:
    """It is about the agent: the resource's other talks are not held up by it."""
    async with scripted_azure(foundry) as azure:
        azure.refuse = lambda _: answer(status, b"{}")
        async with (
            broker(azure.url, agents=agents, azure_auth="entra", voice_live_webrtc="on") as running,
            running.client(path=path) as client,
        ):
            if path:
                await client.send(CREATE)
            assert await client.closed() == 4502
            assert client.events[-1]["code"] == "agent_refused"
            assert told in client.events[-1]["message"]
            upstreams = {each.name: each for each in running.relay.snapshot().upstreams}
            assert upstreams["foundry_agent"].attempts == 1
            assert upstreams["foundry_agent"].breaker.value == "closed"
        assert len(azure.handshakes) == 1  # nobody else takes the talk


async def test_key_alone_is_not_taken(agents: Any) -> None:
    async with (
        scripted_azure(foundry) as azure,
        broker(azure.url, agents=agents, azure_auth="key") as running,
        running.client() as client,
    ):
        assert await client.closed() == 4502
        assert not azure.handshakes


@pytest.mark.parametrize("settings", [{"voice_live_webrtc": "off"}, {"token_strategies": ("ga", "websocket_proxy")}])
async def test_switch_holds_at_the_socket(agents: Any, settings: dict[str, Any]) -> None:
    """A plan without WebRTC is no wish: its ticket opens no call either."""
    chosen = {"voice_live_webrtc": "on", "azure_auth": "entra"} | settings
    async with (
        scripted_azure(foundry) as azure,
        broker(azure.url, agents=agents, **chosen) as running,
        running.client(path=MEDIA) as client,
    ):
        await client.send(CREATE)
        assert await client.closed() == 4502
        assert not azure.handshakes
