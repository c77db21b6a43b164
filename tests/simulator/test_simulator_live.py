"""GPT-Live, judged by the official client: its WebSocket, WebRTC with a sideband, delegation, and what is refused."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from openai import APIStatusError, AsyncOpenAI
from openai.types.live import ConnectServerEvent, ServerEvent
from pydantic import TypeAdapter
from websockets.exceptions import InvalidStatus

from tests.simulator.phone import Phone
from tests.simulator.support import KEY, Caller, call, correlation, silence, speech
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

PATH = "/openai/v1/live/sessions"
SESSION: dict[str, Any] = {"model": "gpt-live-1", "instructions": "Be brief."}
TOOLS = [{"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}]
BACKEND = {"type": "responses", "responses": {"model": "gpt-5.4", "tools": TOOLS}}
PRIMARY: TypeAdapter[Any] = TypeAdapter(ServerEvent)
SIDEBAND: TypeAdapter[Any] = TypeAdapter(ConnectServerEvent)


pytestmark = pytest.mark.usefixtures("loopback")


@pytest.fixture
async def azure() -> AsyncIterator[RunningSimulator]:
    async with serve(SimulatorConfig(ice_addresses=("127.0.0.1",))) as running:
        yield running
    assert (running.running, running.calls) == (0, 0)


@pytest.fixture
async def official(azure: RunningSimulator) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="simulated-key", base_url=f"{azure.base_url}/openai/v1", max_retries=0) as client:
        yield client


async def _hear(connection: Any, name: str, kept: list[Any]) -> Any:
    async with asyncio.timeout(10):
        while True:
            event = await connection.recv()
            # As strict as the types are, which the client by itself is not.
            PRIMARY.validate_python(event.to_dict(), extra="forbid")
            kept.append(event)
            if event.type == name:
                return event


def _pieces(pcm: bytes) -> list[str]:
    return [base64.b64encode(pcm[begin : begin + 4800]).decode() for begin in range(0, len(pcm), 4800)]


async def test_spoken_talk_by_official_client(azure: RunningSimulator, official: AsyncOpenAI) -> None:
    seen: list[Any] = []
    async with official.live.connect() as connection:
        await connection.session.start(session=SESSION, event_id="begin")  # type: ignore[arg-type]
        started = await _hear(connection, "session.started", seen)
        assert started.client_event_id == "begin"
        assert (started.session.model, started.session.instructions) == ("gpt-live-1", "Be brief.")
        assert started.session.audio.output.voice == "marin"
        for audio in _pieces(speech(1) + silence(0.7)):
            await connection.session.input_audio.append(audio=audio)
        usage = await _hear(connection, "session.usage.updated", seen)
        assert usage.usage.seconds >= 0
        heard = b"".join(base64.b64decode(event.delta) for event in seen if event.type == "session.output_audio.delta")
        assert correlation(speech(1), heard) > 0.95
        said = "".join(event.delta for event in seen if event.type == "session.input_transcript.delta")
        assert said.startswith("[simulated]")
        assert [event for event in seen if event.type == "session.output_transcript.delta"]
        await connection.session.close(event_id="bye")
        closed = await _hear(connection, "session.closed", seen)
        assert (closed.reason, closed.client_event_id) == ("close_requested", "bye")
    (talk,) = azure.transcript.talks
    assert (talk.dialect, talk.ended_by) == ("live", "server")
    (answer,) = azure.transcript.answers
    assert answer.was_heard
    assert answer.status == "completed"


async def test_client_delegation_by_official_client(azure: RunningSimulator, official: AsyncOpenAI) -> None:
    azure.script_responses({"say": "One moment.", "calls": [{"name": "delegate"}]})
    seen: list[Any] = []
    async with official.live.connect() as connection:
        await connection.session.start(session=SESSION | {"delegation": {"type": "client"}})  # type: ignore[arg-type]
        await _hear(connection, "session.started", seen)
        for audio in _pieces(speech(0.5) + silence(0.7)):
            await connection.session.input_audio.append(audio=audio)
        created = await _hear(connection, "session.delegation.created", seen)
        assert created.delegation.target == "client"
        await _hear(connection, "session.usage.updated", seen)
        await connection.session.thinking.append(content="Looking.", delegation_id=created.delegation.id)
        await _hear(connection, "session.thinking.appended", seen)
        await connection.session.commentary.append(content="It rains.", delegation_id=created.delegation.id)
        await _hear(connection, "session.commentary.appended", seen)
        seen.clear()
        await _hear(connection, "session.usage.updated", seen)
        assert "".join(e.delta for e in seen if e.type == "session.output_transcript.delta") == "It rains."


async def test_backend_delegation_by_official_client(azure: RunningSimulator, official: AsyncOpenAI) -> None:
    azure.script_responses({"calls": [{"name": "get_weather", "arguments": {"city": "London"}}]})
    seen: list[Any] = []
    async with official.live.connect() as connection:
        await connection.session.start(session=SESSION | {"delegation": BACKEND})  # type: ignore[arg-type]
        await _hear(connection, "session.started", seen)
        for audio in _pieces(speech(0.5) + silence(0.7)):
            await connection.session.input_audio.append(audio=audio)
        created = await _hear(connection, "session.delegation.created", seen)
        called: Any = None
        while called is None or called.event["type"] != "response.completed":
            called = await _hear(connection, "response.event", seen)
            assert called.delegation_id == created.delegation.id
        done = [e.event for e in seen if e.type == "response.event" and e.event["type"] == "response.output_item.done"]
        item = {"type": "function_call_output", "call_id": done[0]["item"]["call_id"], "output": "12 degrees"}
        await connection.response.item.create(item=item)  # type: ignore[arg-type]
        await connection.response.create()
        seen.clear()
        await _hear(connection, "session.usage.updated", seen)
        spoken = "".join(e.delta for e in seen if e.type == "session.output_transcript.delta")
        assert spoken.endswith("the function gave: 12 degrees")
        typed: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Good morning"}]}
        await connection.response.item.create(item=typed)
        await connection.response.create()
        seen.clear()
        await _hear(connection, "session.usage.updated", seen)
        spoken = "".join(e.delta for e in seen if e.type == "session.output_transcript.delta")
        assert spoken.endswith("you wrote: Good morning")


@asynccontextmanager
async def _calling(
    official: AsyncOpenAI, azure: RunningSimulator, pcm: bytes = b"", **session: Any
) -> AsyncIterator[tuple[Phone, str]]:
    phone = Phone(pcm)
    try:
        transport: Any = {"type": "webrtc", "sdp": await phone.offer()}
        made = await official.live.create(session=SESSION | session, transport=transport)  # type: ignore[arg-type]
        await phone.connect(made.transport.sdp)
        yield phone, made.session.id
    finally:
        await phone.hang_up()
    await azure.until_calls(0)


@pytest.mark.slow
async def test_webrtc_with_sideband(azure: RunningSimulator, official: AsyncOpenAI) -> None:
    async with (
        _calling(official, azure, silence(0.5) + speech(1)) as (phone, session_id),
        official.live.sideband.connect(session_id=session_id) as sideband,
    ):
        started = await phone.hear("session.started")
        assert started["session"]["id"] == session_id
        reflected: list[Any] = []
        async with asyncio.timeout(10):
            while not reflected or reflected[-1].type != "session.usage.updated":
                event = await sideband.recv()
                SIDEBAND.validate_python(event.to_dict(), extra="forbid")
                reflected.append(event)
        kinds = {event.type for event in reflected}
        assert {"session.input_audio.append", "session.output_audio.delta", "session.input_transcript.delta"} <= kinds
        assert all(e.end_ms > e.start_ms for e in reflected if e.type == "session.output_audio.delta")
        assert {"session.input_audio.append", "session.output_audio.delta"}.isdisjoint(phone.names())
        with pytest.raises(InvalidStatus, match="409"):
            async with official.live.sideband.connect(session_id=session_id):
                pass
        with azure.fault("many-sidebands", PATH):
            async with official.live.sideband.connect(session_id=session_id):
                pass
        await sideband.session.close()
        while (await sideband.recv()).type != "session.closed":
            pass
        await asyncio.wait_for(phone.closed.wait(), 5)


async def test_sideband_hears_of_hang_up(azure: RunningSimulator, official: AsyncOpenAI) -> None:
    async with _calling(official, azure) as (phone, session_id):
        await phone.hear("session.started")
        async with call(azure, f"{PATH}/{session_id}/attach") as sideband:
            await phone.hang_up()
            assert (await sideband.hear("session.closed"))["reason"] == "remote_hangup"
    with pytest.raises(InvalidStatus, match="404"):
        async with call(azure, f"{PATH}/{session_id}/attach"):
            pass


async def test_page_has_only_its_rights(azure: RunningSimulator, official: AsyncOpenAI) -> None:
    rights = {
        "allowed_client_events": ["session.input_audio.mute"],
        "allowed_server_events": [{"type": "session.input_audio.muted"}],
    }
    async with (
        _calling(official, azure, client={"data_channel": rights}) as (phone, session_id),
        call(azure, f"{PATH}/{session_id}/attach") as sideband,
    ):
        opened = asyncio.Event()
        phone.channel.on("open", opened.set)
        if phone.channel.readyState != "open":
            await asyncio.wait_for(opened.wait(), 10)
        phone.send("session.close")
        phone.send("session.input_audio.mute")
        await sideband.hear("session.input_audio.muted")
        await phone.hear("session.input_audio.muted")
        assert phone.names() == ["session.input_audio.muted"]


async def _error(caller: Caller, name: str, **fields: Any) -> str:
    await caller.send(name, **fields)
    return str((await caller.hear("error"))["error"]["code"])


async def test_strict_about_what_a_client_sends(azure: RunningSimulator) -> None:
    async with call(azure, PATH) as caller:
        assert await _error(caller, "session.close") == "session_not_started"
        assert await _error(caller, "session.start", session=SESSION | {"voice": "marin"}) == "unknown_parameter"
        assert await _error(caller, "session.start", session={"model": "gpt-realtime"}) == "model_not_found"
        assert await _error(caller, "session.start", session={}) == "missing_required_parameter"
        await caller.send("session.start", session=SESSION)
        await caller.hear("session.started")
        assert await _error(caller, "session.start", session=SESSION) == "invalid_event"
        assert await _error(caller, "session.update", session={"instructions": "New."}) == "unknown_parameter"
        assert await _error(caller, "session.update", session={"delegation": BACKEND}) == "invalid_value"
        assert await _error(caller, "session.commentary.append", content="x") == "missing_required_parameter"
        assert await _error(caller, "session.commentary.append", content="x", delegation_id="none") == "invalid_value"
        assert await _error(caller, "response.create") == "invalid_event"
        assert await _error(caller, "conversation.item.create", item={}) == "invalid_value"
        await caller.send("session.update", session={"delegation": {"type": "client", "acknowledgement_delay_ms": 5}})
        assert (await caller.hear("session.updated"))["session"]["delegation"]["acknowledgement_delay_ms"] == 5


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"session": SESSION | {"unheard_of": 1}, "transport": {"type": "webrtc", "sdp": "v=0"}}, 400),
        ({"session": SESSION | {"audio": {"format": {"type": "audio/pcm", "rate": 24000}}}, "transport": {}}, 400),
        ({"session": SESSION, "transport": {"type": "webrtc", "sdp": "v=0"}}, 400),
        ({"session": {"model": "gpt-realtime"}, "transport": {"type": "webrtc", "sdp": "v=0"}}, 404),
    ],
)
async def test_create_is_refused(official: AsyncOpenAI, body: dict[str, Any], status: int) -> None:
    with pytest.raises(APIStatusError) as refused:
        await official.live.create(**body)
    assert refused.value.status_code == status


async def test_ephemeral_keys_are_refused(azure: RunningSimulator) -> None:
    async with httpx.AsyncClient(base_url=azure.base_url, headers=KEY) as client:
        session = {"type": "realtime", "model": "gpt-realtime"}
        secret = (await client.post("/openai/v1/realtime/client_secrets", json={"session": session})).json()["value"]
    bearer = {"authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(base_url=azure.base_url, headers=bearer) as client:
        assert (await client.post(PATH, json={})).status_code == 401
    with pytest.raises(InvalidStatus, match="401"):
        async with call(azure, PATH, bearer):
            pass


async def test_session_expires(azure: RunningSimulator) -> None:
    with azure.fault("session_expires", PATH, seconds=0.2):
        async with call(azure, PATH) as caller:
            await caller.send("session.start", session=SESSION)
            assert (await caller.hear("session.closed"))["reason"] == "expired"
            await caller.socket.wait_closed()
            assert caller.socket.close_code == 1000


async def test_hang_up_route_is_switched_on() -> None:
    config = SimulatorConfig(ice_addresses=("127.0.0.1",), live_hangup=True)
    async with (
        serve(config) as azure,
        AsyncOpenAI(api_key="simulated-key", base_url=f"{azure.base_url}/openai/v1") as official,
        _calling(official, azure) as (phone, session_id),
    ):
        await phone.hear("session.started")
        await official.live.sessions.hangup(session_id)
        assert (await phone.hear("session.closed"))["reason"] == "close_requested"
