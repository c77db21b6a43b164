"""WebRTC: offers and who may make them, a spoken talk over RTP, the filter, the sideband, hang-ups and faults."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from tests.simulator.phone import Phone
from tests.simulator.support import KEY, call, correlation, silence, speech
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

CALLS = "/openai/v1/realtime/calls"
SESSION: dict[str, Any] = {
    "type": "realtime",
    "model": "gpt-realtime",
    "instructions": "Be brief.",
    "audio": {"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}},
}
FILTERED = {
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "output_audio_buffer.started",
    "output_audio_buffer.stopped",
    "conversation.item.input_audio_transcription.completed",
    "conversation.item.added",
    "response.output_audio_transcript.delta",
    "response.output_audio_transcript.done",
}


pytestmark = pytest.mark.usefixtures("loopback")


@pytest.fixture
async def azure() -> AsyncIterator[RunningSimulator]:
    config = SimulatorConfig(ice_addresses=("127.0.0.1",))
    async with serve(config) as running:
        yield running
    assert (running.running, running.calls) == (0, 0)


async def _mint(azure: RunningSimulator, session: dict[str, Any] | None = None) -> str:
    async with httpx.AsyncClient(base_url=azure.base_url, headers=KEY) as client:
        answer = await client.post("/openai/v1/realtime/client_secrets", json={"session": session or SESSION})
        return str(answer.json()["value"])


async def _post(
    azure: RunningSimulator, offer: str, token: str, query: str = "", media_type: str = "application/sdp"
) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}", "content-type": media_type}
    async with httpx.AsyncClient(base_url=azure.base_url, headers=headers, timeout=10) as client:
        return await client.post(CALLS + query, content=offer)


@asynccontextmanager
async def _phone(pcm: bytes = b"", **options: Any) -> AsyncIterator[Phone]:
    phone = Phone(pcm, **options)
    try:
        yield phone
    finally:
        await phone.hang_up()


@asynccontextmanager
async def _calling(azure: RunningSimulator, pcm: bytes = b"", query: str = "") -> AsyncIterator[tuple[Phone, str]]:
    """A call that is being connected, and its id."""
    async with _phone(pcm) as phone:
        answer = await _post(azure, await phone.offer(), await _mint(azure), query)
        assert answer.status_code == 201
        phone.answer_type = answer.headers["content-type"]
        await phone.connect(answer.text)
        yield phone, answer.headers["location"].rpartition("/")[2]
    await azure.until_calls(0)


async def test_spoken_talk_comes_back_over_rtp(azure: RunningSimulator) -> None:
    async with _calling(azure, silence(0.5) + speech(2)) as (phone, _):
        created = await phone.hear("session.created")
        assert created["session"]["instructions"] == "Be brief."
        await phone.hear("output_audio_buffer.stopped")
        names = phone.names()
        heard = phone.heard()
    order = [
        "session.created",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "response.created",
        "output_audio_buffer.started",
        "response.output_audio.done",
        "response.done",
        "output_audio_buffer.stopped",
    ]
    assert [name for name in names if name in order] == order
    assert "response.output_audio.delta" not in names
    alike = correlation(speech(2), heard)
    assert alike > 0.95


@pytest.mark.slow
async def test_webrtcfilter_passes_few_events(azure: RunningSimulator) -> None:
    async with _calling(azure, speech(0.5), "?webrtcfilter=on") as (phone, _):
        await phone.hear("output_audio_buffer.stopped")
        phone.send("nonsense")
        phone.send("session.update", session={"type": "realtime", "instructions": "New."})
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}
        phone.send("conversation.item.create", item=item | {"id": "item_mine"})
        phone.send("response.create")
        await phone.hear("output_audio_buffer.stopped", count=2)
        assert "item_mine" in [event["item"]["id"] for event in phone.events if "item" in event]
        assert set(phone.names()) == FILTERED


async def test_text_cancel_and_clear_on_data_channel() -> None:
    # Slow enough for the cancel to come in time on a busy machine, and faster than it is played.
    unhurried = SimulatorConfig(ice_addresses=("127.0.0.1",), answer_speed=2)
    async with serve(unhurried) as azure, _calling(azure) as (phone, _):
        await phone.hear("session.created")
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello " * 50}]}
        phone.send("conversation.item.create", item=item)
        phone.send("response.create")
        started = await phone.hear("output_audio_buffer.started")
        await phone.hear("response.output_audio_transcript.delta", count=4)
        phone.send("response.cancel")
        phone.send("output_audio_buffer.clear")
        cleared = await phone.hear("output_audio_buffer.cleared")
        assert cleared["response_id"] == started["response_id"]
        assert (await phone.hear("response.done"))["response"]["status"] == "cancelled"


async def test_barge_in_clears_unheard_audio(azure: RunningSimulator) -> None:
    # The answer to the first sentence is sent whole long before it is heard: the second sentence falls into it.
    async with _calling(azure, speech(1.5) + silence(0.8) + speech(0.6)) as (phone, _):
        await phone.hear("output_audio_buffer.cleared")
        names = phone.names()
    assert names.index("response.done") < names.index("output_audio_buffer.cleared")
    assert names.count("input_audio_buffer.speech_started") == 2
    # The server knows what was heard, so it truncates the item itself.
    assert names[-2:] == ["conversation.item.truncated", "output_audio_buffer.cleared"]


async def test_any_data_channel_label_works(azure: RunningSimulator) -> None:
    # Every other test here uses `oai-events`.
    async with _phone(label="anything") as phone:
        await phone.connect((await _post(azure, await phone.offer(), await _mint(azure))).text)
        await phone.hear("session.created")
    await azure.until_calls(0)


async def test_offer_without_candidates_works(azure: RunningSimulator) -> None:
    async with _phone() as phone:
        bare = "".join(
            line for line in (await phone.offer()).splitlines(keepends=True) if not line.startswith("a=candidate")
        )
        await phone.connect((await _post(azure, bare.replace("a=end-of-candidates\r\n", ""), await _mint(azure))).text)
        await phone.hear("session.created")
    await azure.until_calls(0)


@pytest.mark.parametrize("token", ["ek_simulated_forged", "nonsense"])
async def test_call_refuses_unknown_secret(azure: RunningSimulator, token: str) -> None:
    answer = await _post(azure, "v=0", token)
    assert (answer.status_code, answer.json()["statusCode"]) == (401, 401)


@pytest.mark.parametrize("token", ["simulated-key", "simulated-entra-token"])
async def test_call_needs_ephemeral_secret(azure: RunningSimulator, token: str) -> None:
    answer = await _post(azure, "v=0", token)
    assert answer.status_code == 401
    assert "requires ephemeral tokens for authentication" in answer.json()["error"]["message"]


async def test_key_or_expired_secret_may_not_call(azure: RunningSimulator) -> None:
    async with httpx.AsyncClient(base_url=azure.base_url, headers=KEY) as client:
        assert (await client.post(CALLS, content="v=0", headers={"content-type": "application/sdp"})).status_code == 401
    secret = await _mint(azure)
    azure.simulator.resource.secrets.expire(secret)
    assert (await _post(azure, "v=0", secret)).status_code == 401


@pytest.mark.parametrize("offer", ["", "nonsense", "v=0\r\n", "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"])
async def test_invalid_offer_is_400(azure: RunningSimulator, offer: str) -> None:
    answer = await _post(azure, offer, await _mint(azure))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_offer")


async def test_offer_without_audio_is_400(azure: RunningSimulator) -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.createDataChannel("oai-events")
    await connection.setLocalDescription(await connection.createOffer())
    answer = await _post(azure, connection.localDescription.sdp, await _mint(azure))
    await connection.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_offer")


async def test_wrong_type_or_api_version_is_refused(azure: RunningSimulator) -> None:
    secret = await _mint(azure)
    assert (await _post(azure, "v=0", secret, media_type="application/json")).status_code == 415
    assert (await _post(azure, "v=0", secret, "?api-version=2025-10-01")).status_code == 400


async def test_call_answer_is_201_with_location(azure: RunningSimulator) -> None:
    async with _phone() as phone:
        answer = await _post(azure, await phone.offer(), await _mint(azure))
        assert answer.status_code == 201
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["access-control-expose-headers"] == "Location,X-Request-Id"
        assert {"azureml-served-by-cluster", "openai-processing-ms", "openai-version"} <= set(answer.headers)
        assert answer.text.count(" tcp ") == 1
        assert " 3478 typ host tcptype passive" in answer.text
        assert answer.headers["location"].startswith("/v1/realtime/calls/rtc_")
        assert answer.text.startswith("v=0")
        assert "127.0.0.1" in answer.text
        await phone.connect(answer.text)
        await phone.hear("session.created")
    await azure.until_calls(0)


async def test_sdp_answer_type_can_be_set() -> None:
    documented = "application/sdp"
    config = SimulatorConfig(ice_addresses=("127.0.0.1",), sdp_answer_type=documented)
    async with serve(config) as azure, _calling(azure) as (phone, _):
        await phone.hear("session.created")
        assert phone.answer_type == documented


async def test_call_without_aiortc_is_501(azure: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "token_broker.simulator.realtime.call", None)
    answer = await _post(azure, "v=0", await _mint(azure))
    assert answer.status_code == 501
    assert "not part of this installation" in answer.json()["error"]["message"]


async def test_control_ends_all_calls(azure: RunningSimulator) -> None:
    async with _calling(azure) as (phone, _), httpx.AsyncClient(base_url=azure.base_url) as client:
        await phone.hear("session.created")
        assert (await client.delete("/_simulator/calls")).status_code == 204
        await asyncio.wait_for(phone.closed.wait(), 5)
        assert (await client.get("/_simulator")).json()["calls"] == 0


async def test_hang_up_ends_call_second_is_404(azure: RunningSimulator) -> None:
    async with _calling(azure) as (phone, call_id):
        await phone.hear("session.created")
        async with httpx.AsyncClient(base_url=azure.base_url, headers=KEY) as client:
            assert (await client.post(f"{CALLS}/{call_id}/hangup")).status_code == 200
            await asyncio.wait_for(phone.closed.wait(), 5)
            await azure.until_calls(0)
            assert (await client.post(f"{CALLS}/{call_id}/hangup")).status_code == 404
    async with httpx.AsyncClient(base_url=azure.base_url) as stranger:
        assert (await stranger.post(f"{CALLS}/rtc_x/hangup")).status_code == 401


async def test_sideband_sees_filtered_events_and_sends(azure: RunningSimulator) -> None:
    async with _calling(azure, query="?webrtcfilter=on") as (phone, call_id):
        async with call(azure, f"/openai/v1/realtime?call_id={call_id}") as observer:
            await observer.send("session.update", session={"type": "realtime", "max_output_tokens": 99})
            assert (await observer.hear("session.updated"))["session"]["instructions"] == "Be brief."
            assert [event["type"] for event in observer.events] == ["session.updated"]
            await observer.send("response.create")
            await observer.hear("response.done")
            await observer.hear("output_audio_buffer.stopped")
            assert observer.heard("output_audio_buffer.started")
            assert observer.audio() == b""
            await phone.hear("response.output_audio_transcript.done")
        assert "session.updated" not in phone.names()


async def test_sideband_can_state_session_first() -> None:
    config = SimulatorConfig(ice_addresses=("127.0.0.1",), sideband_states_session=True)
    async with serve(config) as azure, _calling(azure) as (phone, call_id):
        await phone.hear("session.created")
        async with call(azure, f"/openai/v1/realtime?call_id={call_id}") as observer:
            assert (await observer.hear("session.created"))["session"]["instructions"] == "Be brief."


async def test_sideband_may_wait_for_the_peer(azure: RunningSimulator) -> None:
    async with _phone() as phone:
        answer = await _post(azure, await phone.offer(), await _mint(azure))
        sideband = f"/openai/v1/realtime?call_id={answer.headers['location'].rpartition('/')[2]}"
        # As a rule a call that has been answered can be joined, whether its peer has come or not.
        async with call(azure, sideband):
            pass
        with azure.fault("late_sideband", "/openai/v1/realtime"):
            with pytest.raises(Exception, match="404"):
                async with call(azure, sideband):
                    pass
            await phone.connect(answer.text)
            await phone.hear("session.created")
            async with call(azure, sideband):
                pass
    await azure.until_calls(0)


async def test_sideband_ends_with_its_call(azure: RunningSimulator) -> None:
    async with _calling(azure) as (phone, call_id), call(azure, f"/openai/v1/realtime?call_id={call_id}") as observer:
        await phone.hear("session.created")
        await phone.hang_up()
        await observer.socket.wait_closed()
        assert observer.socket.close_code == 1000


@pytest.mark.parametrize(("path", "headers", "status"), [("rtc_none", KEY, 404), ("rtc_none", {}, 401)])
async def test_sideband_needs_call_and_credential(
    azure: RunningSimulator, path: str, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(Exception, match=str(status)):
        async with call(azure, f"/openai/v1/realtime?call_id={path}", headers):
            pass


async def test_flat_secret_calls_in_preview_events(azure: RunningSimulator) -> None:
    async with httpx.AsyncClient(base_url=azure.base_url, headers=KEY) as client:
        path = "/openai/deployments/gpt-realtime/realtime/client_secrets?api-version=2025-10-01"
        secret = (await client.post(path, json={"instructions": "Be brief."})).json()["value"]
    async with _phone(speech(0.4)) as phone:
        await phone.connect((await _post(azure, await phone.offer(), secret)).text)
        await phone.hear("response.audio_transcript.done")
    await azure.until_calls(0)


async def test_cors_allows_any_page_despite_faults(azure: RunningSimulator) -> None:
    asked = {
        "origin": "http://page",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-openai-agents-sdk",
    }
    async with httpx.AsyncClient(base_url=azure.base_url) as client:
        with azure.fault("status", code=503, times=1):
            preflight = await client.options(CALLS, headers=asked)
            refused = await client.post(CALLS, headers={"origin": "http://page"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-headers"] == asked["access-control-request-headers"]
    assert refused.status_code == 503
    for answer in (preflight, refused):
        assert answer.headers["access-control-allow-origin"] == "*"
    assert "Location" in refused.headers["access-control-expose-headers"]


# --- Faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 404, 500])
async def test_offer_can_be_refused_by_fault(azure: RunningSimulator, code: int) -> None:
    with azure.fault("status", CALLS, code=code):
        assert (await _post(azure, "v=0", await _mint(azure))).status_code == code


@pytest.mark.slow
async def test_ice_never_fault_never_connects(azure: RunningSimulator) -> None:
    with azure.fault("ice_never", CALLS):
        async with _phone() as phone:
            answer = await _post(azure, await phone.offer(), await _mint(azure))
            assert answer.status_code == 201
            assert "198.51.100.1" in answer.text
            assert "127.0.0.1" not in answer.text
            assert azure.calls == 0
            await phone.connect(answer.text)
            with pytest.raises(TimeoutError):
                await phone.hear("session.created", timeout_s=1)
            assert phone.connection.connectionState == "connecting"


@pytest.mark.parametrize("how", ["close", "channel"])
async def test_die_after_fault_ends_call(azure: RunningSimulator, how: str) -> None:
    with azure.fault("die_after", CALLS, seconds=0.2, how=how):
        async with _calling(azure) as (phone, _):
            await phone.hear("session.created")
            await asyncio.wait_for(phone.closed.wait(), 5)


async def test_die_after_fault_silences_call(azure: RunningSimulator) -> None:
    with azure.fault("die_after", CALLS, seconds=0.3, how="silent"):
        async with _calling(azure) as (phone, _):
            await phone.hear("session.created")
            await azure.until_calls(0)
            phone.events.clear()
            phone.send("response.create")
            with pytest.raises(TimeoutError):
                await phone.hear("response.created", timeout_s=0.5)


async def test_stop_ends_calls_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    async with serve(SimulatorConfig(ice_addresses=("127.0.0.1",))) as azure, _phone() as phone:
        await phone.connect((await _post(azure, await phone.offer(), await _mint(azure))).text)
        await phone.hear("session.created")
        await azure.simulator.stop()
        assert azure.calls == 0
        await asyncio.wait_for(phone.closed.wait(), 5)
    assert asyncio.all_tasks() == before
