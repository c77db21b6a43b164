"""Voice Live by WebRTC through the whole broker, against a simulated resource that mints nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.conftest import StartBroker
from tests.simulator.phone import Phone
from tests.simulator.support import silence, speech
from tests.support.waiting import eventually
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

UNIFIED = ("unified", "voice_live_webrtc", "websocket_proxy")
MINTS = "/openai"
CONTROL = "/voice-live/realtime/calls"


pytestmark = pytest.mark.usefixtures("loopback")


@pytest.fixture
async def unified() -> AsyncIterator[RunningSimulator]:
    async with serve(SimulatorConfig(ice_addresses=("127.0.0.1",))) as azure:
        azure.set_faults({"match": MINTS, "fault": "status", "code": 404})
        yield azure


async def test_unified_alone_is_live_by_webrtc(unified: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(unified, voice_live_webrtc="auto", token_strategies=UNIFIED)
    plan = await broker.plan()
    assert (plan["strategy"], plan["degraded"], plan["token"]) == ("voice_live_webrtc", False, None)
    assert (plan["endpoint"], plan["outlook"], plan["resource"]) == (broker.base_url, "good", None)
    first, proxy = plan["connections"]
    assert (first["transport"], proxy["transport"]) == ("webrtc_websocket", "websocket_proxy")
    assert (first["dialect"], first["voice"]) == ("preview", "en-US-Ava:DragonHDLatestNeural")
    assert first["url"] == f"{proxy['url']}?media=webrtc"
    assert plan["expires_at"] == first["expires_at"]
    events: list[dict[str, Any]] = []
    phone = Phone(silence(0.5) + speech(2), label="voice-live-events")
    url, offered = first["url"], first["protocols"]
    async with connect(url, subprotocols=offered, proxy=None, compression=None) as socket:
        offer = {"type": "rtc.call.sdp.create", "sdp_offer": await phone.offer()}
        await socket.send(json.dumps(offer))

        async def until(kind: str) -> dict[str, Any]:
            async with asyncio.timeout(30):
                while True:
                    events.append(json.loads(await socket.recv()))
                    if events[-1]["type"] == kind:
                        return events[-1]

        await phone.connect((await until("rtc.call.sdp.created"))["sdp_answer"])
        assert (await until("broker.ready"))["upstream"] == "voice_live_webrtc"
        await until("response.audio_transcript.done")
        await phone.hear("output_audio_buffer.stopped")
        status = (await broker.client.get("/status")).json()
        assert [each["state"] for each in status["voice_live_webrtc"]] == ["available"]
        assert {each["name"]: each["attempts"] for each in status["strategies"]}["voice_live_webrtc"] == 1
        assert "voice_live_webrtc" in {each["name"] for each in status["relay"]["upstreams"]}
        metrics = (await broker.client.get("/metrics")).text
        assert 'token_broker_voice_live_webrtc{resource="default",state="available"} 1.0' in metrics
        assert 'token_broker_token_requests_total{result="signalled"} 1.0' in metrics
    await unified.until_calls(0)  # the call has ended with its control socket
    await phone.hang_up()
    bearer = {"Authorization": f"Bearer {plan['session_token']}"}

    async def stored() -> bool:
        turns = await broker.client.get(f"/api/v1/memory/sessions/{plan['session_id']}/turns", headers=bearer)
        roles = [turn["role"] for turn in turns.json()["turns"]]
        return roles == ["user", "assistant"]

    await eventually(stored)
    # No credential and no instruction is in anything that the page got, on either channel.
    seen = json.dumps([plan, events, phone.events])
    for canary in ("simulated-key", "You are Elena", "instructions"):
        assert canary not in seen


NO_WEBRTC = {"match": CONTROL, "fault": "no_voice_live_webrtc"}


@pytest.mark.parametrize(
    ("body", "settings", "transports"),
    [
        ({"transports": ["webrtc_websocket"]}, {}, ["webrtc_websocket"]),
        ({"transports": ["websocket_proxy"]}, {}, ["websocket_proxy"]),
        ({"max_session_s": 60}, {}, ["websocket_proxy"]),
        ({"max_session_s": 60}, {"voice_live_webrtc_ends": "on"}, ["webrtc_websocket", "websocket_proxy"]),
        ({}, {"voice_live_webrtc": "off"}, ["websocket_proxy"]),
        ({}, {"fault": NO_WEBRTC}, ["websocket_proxy"]),
        ({}, {"voice_live_webrtc_api_version": "2026-04-10"}, ["websocket_proxy"]),
        ({}, {"voice_live_webrtc_api_version": "2026-06-01-preview"}, ["websocket_proxy"]),
        ({}, {"endpoint_kind": "direct", "token_strategies": ("ga", *UNIFIED)}, ["websocket_proxy"]),
    ],
)
async def test_plans_by_settings(
    unified: RunningSimulator,
    start_broker: StartBroker,
    body: dict[str, Any],
    settings: dict[str, Any],
    transports: list[str],
) -> None:
    chosen = {"voice_live_webrtc": "auto", "token_strategies": UNIFIED} | settings
    if (fault := chosen.pop("fault", None)) is not None:
        unified.set_faults({"match": MINTS, "fault": "status", "code": 404}, fault)
    broker = await start_broker(unified, **chosen)
    plan = await broker.plan(body)
    assert [each["transport"] for each in plan["connections"]] == transports
    assert plan["degraded"] is (plan["strategy"] == "websocket_proxy")
