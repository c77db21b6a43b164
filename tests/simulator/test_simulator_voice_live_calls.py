"""Voice Live over WebRTC: the control socket, what it carries and what the data channel does, and the switches."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets
from websockets.exceptions import InvalidStatus

from tests.simulator.phone import Phone
from tests.simulator.support import KEY, Caller, call, correlation, silence, speech
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

CALLS = "/voice-live/realtime/calls"
PATH = f"{CALLS}?api-version=2026-01-01-preview&model=gpt-realtime"
SESSION: dict[str, Any] = {
    "instructions": "Be brief.",
    "voice": {"type": "azure-standard", "name": "en-US-Ava:DragonHDLatestNeural"},
    "turn_detection": {"type": "azure_semantic_vad", "silence_duration_ms": 300},
    "input_audio_transcription": {"model": "azure-speech"},
    "input_audio_echo_cancellation": {},
}
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}
CONTROL_ALONE = {
    "session.created",
    "session.updated",
    "error",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
}


pytestmark = pytest.mark.usefixtures("loopback")


@pytest.fixture
async def azure() -> AsyncIterator[RunningSimulator]:
    async with serve(SimulatorConfig(ice_addresses=("127.0.0.1",))) as running:
        yield running
    assert (running.running, running.calls) == (0, 0)


@asynccontextmanager
async def _phone(pcm: bytes = b"") -> AsyncIterator[Phone]:
    phone = Phone(pcm, label="voice-live-events")
    try:
        yield phone
    finally:
        await phone.hang_up()


@asynccontextmanager
async def _calling(
    azure: RunningSimulator, pcm: bytes = b"", session: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Phone, Caller]]:
    """A call that is being connected, and its control socket."""
    async with _phone(pcm) as phone, call(azure, PATH) as control:
        offer = {"sdp_offer": await phone.offer()} | ({"session": session} if session else {})
        await control.send("rtc.call.sdp.create", **offer)
        created = await control.hear("rtc.call.sdp.created")
        assert created["rtc_call_id"].startswith("rtc_")
        await phone.connect(created["sdp_answer"])
        yield phone, control
    await azure.until_calls(0)


async def test_spoken_talk_on_both_channels(azure: RunningSimulator) -> None:
    async with _calling(azure, silence(0.5) + speech(2), SESSION) as (phone, control):
        created = control.events[0]
        assert [event["type"] for event in control.events] == ["session.created", "rtc.call.sdp.created"]
        assert created["session"]["instructions"] == "Be brief."
        assert created["session"]["voice"]["type"] == "azure-standard"
        assert created["session"]["turn_detection"]["type"] == "azure_semantic_vad"
        assert created["session"]["expires_at"] > 0
        said = await control.hear("response.audio_transcript.done")
        await phone.hear("output_audio_buffer.stopped")
        names, heard = phone.names(), phone.heard()
    assert correlation(speech(2), heard) > 0.95
    assert "response.done" in names
    assert not CONTROL_ALONE & set(names)
    seen = {event["type"] for event in control.events}
    assert seen == {
        "session.created",
        "rtc.call.sdp.created",
        "conversation.item.input_audio_transcription.completed",
        "response.audio_transcript.done",
    }
    # What comes on both has one id.
    assert said["event_id"] in [event["event_id"] for event in phone.events]
    assert not [name for name in names if name == "response.audio.delta"]


async def test_bare_offer_starts_default_assistant(azure: RunningSimulator) -> None:
    async with _calling(azure) as (_, control):
        session = control.events[0]["session"]
        assert session["voice"] == {"type": "openai", "name": "alloy"}
        assert session["turn_detection"]["type"] == "server_vad"
        assert "Be brief." not in session["instructions"]


async def test_function_call_comes_by_control_socket(azure: RunningSimulator) -> None:
    with azure.fault("late_control", CALLS, seconds=4):
        async with _calling(azure, session={"tools": [WEATHER]}) as (phone, control):
            azure.script_responses({"calls": [{"name": "get_weather", "arguments": {}}]})
            await control.send("response.create")
            calling = asyncio.create_task(control.hear("response.function_call_arguments.done", timeout_s=30))
            done = await phone.hear("response.done", timeout_s=30)
            # The page knows of the call's end before the control socket knows of the call.
            assert not calling.done()
            assert done["response"]["output"][0]["type"] == "function_call"
            assert "response.function_call_arguments.done" not in phone.names()
            azure.set_faults()
            called = await calling
            item = {"type": "function_call_output", "call_id": called["call_id"], "output": "12 degrees"}
            await control.send("conversation.item.create", item=item)
            await control.send("response.create")
            await phone.hear("output_audio_buffer.stopped")
            assert not control.heard("response.done")


async def test_update_keeps_detection_and_provider(azure: RunningSimulator) -> None:
    async with _calling(azure, session=SESSION) as (phone, control):
        refused: list[dict[str, Any]] = [
            {"turn_detection": {"type": "server_vad"}},
            {"turn_detection": None},
            {"voice": {"type": "openai", "name": "alloy"}},
            {"unheard_of": 1},
        ]
        for session in refused:
            await control.send("session.update", session=session | {"instructions": "Changed."})
            error = (await control.hear("error"))["error"]
            assert error["type"] == "invalid_request_error"
        assert "unheard_of" in error["message"]
        kept = {"turn_detection": {"type": "azure_semantic_vad"}}
        kept["voice"] = {"type": "azure-standard", "name": "en-US-Emma:DragonHDLatestNeural"}
        await control.send("session.update", session=kept)
        updated = await control.hear("session.updated")
        assert updated["session"]["instructions"] == "Be brief."
        assert updated["session"]["voice"]["name"] == "en-US-Emma:DragonHDLatestNeural"
        assert {"error", "session.updated"}.isdisjoint(phone.names())


async def test_client_events_from_both_channels(azure: RunningSimulator) -> None:
    async with _calling(azure) as (phone, control):
        with azure.fault("data-channel-ignored", CALLS):
            await _open(phone)
            phone.send("session.update", session={"instructions": "By the page."})
            await control.send("session.update", session={"instructions": "By the server."})
            assert (await control.hear("session.updated"))["session"]["instructions"] == "By the server."
            # SCTP keeps order: what it carried before the next event has been seen and dropped by then.
        phone.send("session.update", session={"instructions": "By the page, again."})
        assert (await control.hear("session.updated"))["session"]["instructions"] == "By the page, again."


async def _open(phone: Phone) -> None:
    opened = asyncio.Event()
    phone.channel.on("open", opened.set)
    if phone.channel.readyState != "open":
        await asyncio.wait_for(opened.wait(), 10)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "missing_sdp"),
        ({"sdp_offer": ""}, "missing_sdp"),
        ({"sdp_offer": "nonsense"}, "bad_sdp_offer"),
        ({"sdp_offer": "v=0", "other": 1}, "unknown_parameter"),
        ({"sdp_offer": "v=0", "session": {"other": 1}}, "unknown_parameter"),
        ({"sdp_offer": "v=0", "session": {"model": "gpt-4o"}}, "invalid_value"),
    ],
)
async def test_refused_offer_leaves_socket_open(azure: RunningSimulator, fields: dict[str, Any], code: str) -> None:
    async with call(azure, PATH) as control, _phone() as phone:
        await control.send("response.create")
        assert (await control.hear("error"))["error"]["code"] == "invalid_event"
        await control.send("rtc.call.sdp.create", **fields)
        refused = await control.hear("rtc.call.error")
        assert refused["operation"] == "rtc.call.sdp.create"
        assert (refused["error"]["type"], refused["error"]["code"]) == ("invalid_request_error", code)
        await control.send("rtc.call.sdp.create", sdp_offer=await phone.offer())
        await control.hear("rtc.call.sdp.created")
        await control.send("rtc.call.sdp.create", sdp_offer="v=0")
        assert (await control.hear("rtc.call.error"))["error"]["code"] == "call_already_exists"
    await azure.until_calls(0)


@pytest.mark.parametrize("how", ["error", "silent"])
async def test_refused_session_may_leave_default(azure: RunningSimulator, how: str) -> None:
    with azure.fault("offer_session", CALLS, how=how):
        async with _calling(azure, session=SESSION | {"unheard_of": 1}) as (_, control):
            names = [event["type"] for event in control.events]
            assert names == [*(["error"] if how == "error" else []), "session.created", "rtc.call.sdp.created"]
            assert control.events[-2]["session"]["voice"]["name"] == "alloy"


async def test_order_of_created_can_be_swapped(azure: RunningSimulator) -> None:
    with azure.fault("webrtc-order", CALLS):
        async with _calling(azure) as (_, control):
            assert [event["type"] for event in control.events] == ["rtc.call.sdp.created"]
            await control.hear("session.created")


async def test_two_audio_lines_carry_no_media(azure: RunningSimulator) -> None:
    async with _phone(speech(1)) as phone, call(azure, PATH) as control:
        phone.connection.addTransceiver("audio")
        await control.send("rtc.call.sdp.create", sdp_offer=await phone.offer())
        await phone.connect((await control.hear("rtc.call.sdp.created"))["sdp_answer"])
        await _open(phone)
        await control.send("response.create")
        await phone.hear("response.done")
        assert "input_audio_buffer.speech_started" not in phone.names()
        assert phone.heard() == b""
    await azure.until_calls(0)


async def test_offer_without_candidates_and_last_line_end(azure: RunningSimulator) -> None:
    async with _phone() as phone, call(azure, PATH) as control:
        lines = [line for line in (await phone.offer()).splitlines() if "candidate" not in line]
        with azure.fault("strict_sdp", CALLS):
            for offer in ("\n".join(lines) + "\n", "\r\n".join(lines)):
                await control.send("rtc.call.sdp.create", sdp_offer=offer)
                assert (await control.hear("rtc.call.error"))["error"]["code"] == "bad_sdp_offer"
            await control.send("rtc.call.sdp.create", sdp_offer="\r\n".join(lines) + "\r\n")
        await phone.connect((await control.hear("rtc.call.sdp.created"))["sdp_answer"])
        await _open(phone)
    await azure.until_calls(0)


async def test_call_ends_with_its_socket(azure: RunningSimulator) -> None:
    async with _calling(azure) as (phone, control):
        await _open(phone)
        await control.socket.close()
        await asyncio.wait_for(phone.closed.wait(), 5)
    with azure.fault("call-outlives-socket", CALLS):
        async with _calling(azure) as (phone, control):
            await _open(phone)
            await control.socket.close()
            await azure.until(0)
            phone.send("response.create")
            await phone.hear("output_audio_buffer.stopped")
            assert azure.calls == 1


async def test_socket_ends_with_its_call(azure: RunningSimulator) -> None:
    async with _calling(azure) as (phone, control):
        await _open(phone)
        await phone.hang_up()
        await control.socket.wait_closed()
        assert control.socket.close_code == 1000
    with azure.fault("session_expires", CALLS, seconds=0.5):
        async with _calling(azure) as (phone, control):
            assert (await control.hear("error"))["error"]["code"] == "session_expired"
            await control.socket.wait_closed()
            assert control.socket.close_code == 1001


async def test_cut_control_socket_ends_call(azure: RunningSimulator) -> None:
    async with _calling(azure) as (phone, control):
        await _open(phone)
        azure.set_faults({"match": CALLS, "fault": "cut"})
        await control.socket.wait_closed()
        assert control.socket.close_code == 1006
        await asyncio.wait_for(phone.closed.wait(), 5)
    azure.set_faults()
    assert [talk.ended_by for talk in azure.transcript.talks] == ["fault"]


@pytest.mark.parametrize("how", ["late", "never", "own"])
async def test_data_channel_may_fail(azure: RunningSimulator, how: str) -> None:
    with azure.fault("data_channel", CALLS, how=how, seconds=0.5):
        async with _calling(azure) as (phone, control):
            own: asyncio.Queue[str] = asyncio.Queue()
            phone.connection.on("datachannel", lambda channel: channel.on("message", own.put_nowait))
            await control.send("response.create")
            await control.hear("response.audio_transcript.done")
            if how == "late":
                await phone.hear("response.done")
            elif how == "own":
                async with asyncio.timeout(5):
                    while json.loads(await own.get())["type"] != "response.done":
                        pass
                assert phone.names() == []
            else:
                assert phone.channel.readyState == "connecting"


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("api-version=2026-04-10&model=gpt-realtime", KEY, 404),
        ("model=gpt-realtime", KEY, 404),
        ("api-version=2026-06-01-preview&model=gpt-realtime", KEY, 401),
        ("api-version=2026-01-01-preview", KEY, 400),
        ("api-version=2026-01-01-preview&model=nobody", KEY, 404),
        ("api-version=2026-01-01-preview&model=gpt-realtime", {}, 401),
        ("api-version=2026-01-01-preview&model=gpt-realtime", {"api-key": "wrong"}, 401),
    ],
)
async def test_handshake_is_refused(azure: RunningSimulator, query: str, headers: dict[str, str], status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with call(azure, f"{CALLS}?{query}", headers):
            pass
    assert refused.value.response.status_code == status


async def test_handshake_takes_every_credential(azure: RunningSimulator) -> None:
    entra = {"authorization": "Bearer simulated-entra-token"}
    taken = [
        ("", KEY),
        ("", entra),
        ("&api-key=simulated-key", {}),
        ("&authorization=Bearer%20simulated-entra-token", {}),
    ]
    for query, headers in taken:
        async with call(azure, PATH + query, headers):
            pass
    realtime = websockets.Subprotocol("realtime")
    async with call(azure, PATH, subprotocols=[realtime]) as control:
        assert control.socket.subprotocol == "realtime"


async def test_resource_without_webrtc_is_404(azure: RunningSimulator) -> None:
    with azure.fault("no-voice-live-webrtc", CALLS), pytest.raises(InvalidStatus, match="404"):
        async with call(azure, PATH):
            pass
    async with serve(SimulatorConfig(voice_live_webrtc=False)) as without:
        with pytest.raises(InvalidStatus, match="404"):
            async with call(without, PATH):
                pass
