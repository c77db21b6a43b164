"""Foundry's voice agents: who is let in, what is refused in which order, and talks over the socket and by WebRTC."""

from typing import Any

import pytest
import websockets
from websockets.exceptions import InvalidStatus

from tests.simulator.phone import Phone
from tests.simulator.support import KEY, call, speech
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

ENTRA = {"authorization": "Bearer simulated-entra-token"}
OPT_IN = "foundry_features=VoiceAgents%3DV1Preview"
WEBRTC = "&transport=webrtc"


def _path(agent: str = "voice-agent", query: str = "") -> str:
    return f"/api/projects/demo/agents/{agent}/endpoint/protocols/voice?api-version=v1&{OPT_IN}{query}"


async def test_talk_over_socket_in_ga_names(azure: RunningSimulator) -> None:
    async with call(azure, _path(), ENTRA) as caller:
        session = (await caller.hear("session.created"))["session"]
        assert session["type"] == "realtime"
        assert session["instructions"] == "You are a simulated voice agent."
        await caller.send("response.create")
        await caller.hear("response.done")
        assert caller.heard("response.output_audio.delta")


@pytest.mark.slow
@pytest.mark.usefixtures("loopback")
async def test_call_keeps_the_service_own_session() -> None:
    phone = Phone(speech(0.5))
    async with (
        serve(SimulatorConfig(ice_addresses=("127.0.0.1",))) as azure,
        call(azure, _path(query=WEBRTC), ENTRA) as control,
    ):
        created = await control.hear("session.created")
        await control.send("rtc.call.sdp.create")
        assert (await control.hear("rtc.call.error"))["error"]["code"] == "missing_sdp"
        foreign = {"type": "realtime", "instructions": "Do as I say.", "unheard_of": 1}
        await control.send("rtc.call.sdp.create", sdp_offer=await phone.offer(), session=foreign)
        answered = await control.hear("rtc.call.sdp.created")
        await phone.connect(answered["sdp_answer"])
        await phone.hear("output_audio_buffer.stopped")
        assert "response.output_audio_transcript.done" in phone.names()
        assert "response.audio_transcript.done" not in phone.names()
        await control.send("session.update", session={"type": "realtime"})
        updated = await control.hear("session.updated")
        assert updated["session"]["instructions"] == created["session"]["instructions"]
        assert len(control.heard("session.created")) == 1
        assert not control.heard("response.done")
        await phone.hang_up()
        await control.socket.wait_closed()
        await azure.until_calls(0)


@pytest.mark.parametrize(
    ("agent", "query", "status", "code"),
    [
        ("nobody", "", 404, "NotFound"),
        ("voice-agent-disabled", "", 409, "agent_disabled"),
        ("voice-agent-disabled", WEBRTC, 409, "agent_disabled"),
        ("voice-agent-without-webrtc", WEBRTC, 404, "NotFound"),
        ("voice-agent-byom", WEBRTC, 400, "invalid_request"),
        ("voice-agent-hosted", WEBRTC, 400, "invalid_request"),
        ("voice-agent", "&transport=sip", 400, "invalid_request"),
        ("voice-agent", "&store=maybe", 400, "invalid_request"),
        ("voice-agent", "&structured_input=nonsense", 400, "invalid_request"),
        ("voice-agent", f"&structured_input={'[' * 17}{']' * 17}", 400, "invalid_request"),
    ],
)
async def test_handshake_refusals(azure: RunningSimulator, agent: str, query: str, status: int, code: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with call(azure, _path(agent, query), ENTRA):
            pass
    response = refused.value.response
    assert response.status_code == status
    assert f'"code": "{code}"'.encode() in response.body


@pytest.mark.parametrize("agent", ["voice-agent-byom", "voice-agent-hosted", "voice-agent-without-webrtc"])
async def test_other_agents_talk_over_socket(azure: RunningSimulator, agent: str) -> None:
    query = "&transport=websocket&store=false&structured_input=%7B%22a%22%3A1%7D"
    async with call(azure, _path(agent, query), ENTRA) as caller:
        await caller.hear("session.created")


async def test_only_entra_with_opt_in_is_let_in(azure: RunningSimulator) -> None:
    bare = _path().partition("?")[0]
    cases: list[tuple[str, dict[str, str], str]] = [
        (_path(), KEY, "401"),
        (_path(), {}, "401"),
        (f"{bare}?{OPT_IN}", ENTRA, "400"),
        (f"{bare}?api-version=v1", ENTRA, "400"),
    ]
    for path, headers, status in cases:
        with pytest.raises(InvalidStatus, match=status):
            async with call(azure, path, headers):
                pass
    header = ENTRA | {"foundry-features": "VoiceAgents=V1Preview"}
    async with call(azure, f"{bare}?api-version=v1", header):
        pass
    offered: Any = [
        websockets.Subprotocol("realtime"),
        websockets.Subprotocol("authorization.bearer.simulated-entra-token"),
    ]
    async with call(azure, _path(), {}, subprotocols=offered) as caller:
        assert caller.socket.subprotocol == "realtime"
