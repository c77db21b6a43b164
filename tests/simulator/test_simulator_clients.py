"""The official clients hold a talk with the simulator, unchanged, and its events are what their models say."""

import asyncio
import base64
import json
import logging
import typing
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import openai
import pytest
from azure.ai.voicelive import models
from azure.ai.voicelive.aio import VoiceLiveConnection, connect
from azure.core.credentials import AccessToken, AzureKeyCredential
from azure.core.credentials_async import AsyncTokenCredential
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from tests.simulator.models import PACKAGE_LEAVES_OUT, extras
from tests.simulator.support import GA_PATH, VOICE_LIVE_PATH, Caller, call, correlation, silence, speech
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

GA_SESSION: dict[str, Any] = {
    "type": "realtime",
    "instructions": "Be brief.",
    "output_modalities": ["audio"],
    "audio": {
        "input": {
            "transcription": {"model": "gpt-4o-mini-transcribe"},
            "turn_detection": {"type": "server_vad", "threshold": 0.6, "silence_duration_ms": 800},
        },
        "output": {"voice": "marin"},
    },
}
SAID = silence(0.3) + speech(2) + silence(1)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No client may have anything to warn of."""
    with caplog.at_level(logging.WARNING):
        yield
    assert caplog.records == []


@pytest.fixture
async def pensive() -> AsyncIterator[RunningSimulator]:
    """A simulator that thinks long enough before it answers to be cancelled on any machine."""
    async with serve(SimulatorConfig(thinking_s=30)) as running:
        yield running


def _chunks(pcm: bytes) -> Iterator[str]:
    for begin in range(0, len(pcm), 4800):
        yield base64.b64encode(pcm[begin : begin + 4800]).decode()


# --- openai, GA ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _ga(azure: RunningSimulator) -> AsyncIterator[AsyncRealtimeConnection]:
    """The package's own connection to GA's socket."""
    client = openai.AsyncOpenAI(
        base_url=f"{azure.base_url}/openai/v1",
        websocket_base_url=f"{azure.websocket_url}/openai/v1",
        api_key="simulated-key",
    )
    async with client, client.realtime.connect(model="gpt-realtime", max_retries=0) as connection:
        yield connection


@pytest.fixture
async def ga(azure: RunningSimulator) -> AsyncIterator[AsyncRealtimeConnection]:
    async with _ga(azure) as connection:
        yield connection


async def _until_done(connection: AsyncRealtimeConnection) -> list[Any]:
    events: list[Any] = []
    async with asyncio.timeout(10):
        async for event in connection:
            assert event.type != "error"
            events.append(event)
            if event.type == "response.done":
                break
    return events


async def test_openai_client_talks_in_audio(ga: AsyncRealtimeConnection) -> None:
    assert (await ga.recv()).type == "session.created"
    await ga.session.update(session=cast("Any", GA_SESSION))
    for audio in _chunks(SAID):
        await ga.input_audio_buffer.append(audio=audio)
    events = await _until_done(ga)
    heard = b"".join(base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta")
    assert correlation(speech(2), heard) > 0.99
    transcripts = [event.transcript for event in events if hasattr(event, "transcript")]
    assert transcripts == ["[simulated] 2.5 s of speech", "[simulated] you said 2.5 s of speech"]
    assert events[-1].response.usage.total_tokens > 0


async def test_openai_client_writes_and_truncates(ga: AsyncRealtimeConnection) -> None:
    content = {"type": "input_text", "text": "Hello there"}
    item = {"type": "message", "role": "user", "content": [content]}
    await ga.conversation.item.create(item=cast("Any", item))
    await ga.response.create()
    events = await _until_done(ga)
    (transcript,) = [event.transcript for event in events if hasattr(event, "transcript")]
    assert transcript == "[simulated] you wrote: Hello there"
    await ga.conversation.item.truncate(item_id=events[-1].response.output[0].id, content_index=0, audio_end_ms=100)
    assert (await ga.recv()).type == "conversation.item.truncated"


async def test_openai_client_cancels(pensive: RunningSimulator) -> None:
    async with _ga(pensive) as connection:
        await connection.response.create()
        await connection.response.cancel()
        assert (await _until_done(connection))[-1].response.status == "cancelled"


async def test_azure_openai_class_on_preview_socket(azure: RunningSimulator) -> None:
    client = openai.AsyncAzureOpenAI(
        azure_endpoint=azure.base_url,
        websocket_base_url=f"{azure.websocket_url}/openai",
        api_key="simulated-key",
        api_version="2025-04-01-preview",
    )
    async with client, client.realtime.connect(model="gpt-realtime", max_retries=0) as connection:
        await connection.response.create()
        async with asyncio.timeout(10):
            async for event in connection:
                assert event.type != "error"
                if event.type == "response.done":
                    break


# --- azure-ai-voicelive ----------------------------------------------------------------------------------------------


class _Token(AsyncTokenCredential):
    """An Entra credential that has its token already."""

    async def get_token(self, *scopes: str, **_options: Any) -> AccessToken:
        assert scopes
        return AccessToken("simulated-entra-token", 2_000_000_000)

    async def close(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


SESSION = models.RequestSession(
    modalities=[models.Modality.TEXT, models.Modality.AUDIO],
    instructions="Be brief.",
    voice=models.AzureStandardVoice(name="en-US-Ava:DragonHDLatestNeural"),
    input_audio_format=models.InputAudioFormat.PCM16,
    output_audio_format=models.OutputAudioFormat.PCM16,
    turn_detection=models.ServerVad(threshold=0.6, prefix_padding_ms=300, silence_duration_ms=800),
    input_audio_noise_reduction=models.AudioNoiseReduction(type="azure_deep_noise_suppression"),
    input_audio_echo_cancellation=models.AudioEchoCancellation(),
    input_audio_transcription=models.AudioInputTranscriptionOptions(model="azure-speech"),
    tools=[models.FunctionTool(name="clock", description="The time.", parameters={"type": "object"})],
    tool_choice=models.ToolChoiceLiteral.AUTO,
)


async def _until_response_done(connection: VoiceLiveConnection) -> list[Any]:
    events: list[Any] = []
    async with asyncio.timeout(10):
        while not events or events[-1].type != models.ServerEventType.RESPONSE_DONE:
            events.append(await connection.recv())
            assert events[-1].type != models.ServerEventType.ERROR
    return events


@pytest.mark.parametrize("credential", [AzureKeyCredential("simulated-key"), _Token()], ids=["key", "token"])
async def test_voice_live_sdk_talks_in_audio(azure: RunningSimulator, credential: Any) -> None:
    async with connect(endpoint=azure.base_url, credential=credential, model="gpt-realtime") as connection:
        await connection.session.update(session=SESSION)
        for audio in _chunks(SAID):
            await connection.input_audio_buffer.append(audio=audio)
        events = await _until_response_done(connection)
    assert [event.type for event in events[:2]] == ["session.created", "session.updated"]
    assert events[1].session.voice["name"] == "en-US-Ava:DragonHDLatestNeural"
    heard = b"".join(event.delta for event in events if event.type == "response.audio.delta")
    assert correlation(speech(2), heard) > 0.99
    transcripts = [event.transcript for event in events if "transcript" in event]
    assert transcripts == ["[simulated] 2.5 s of speech", "[simulated] you said 2.5 s of speech"]
    assert events[-1].response.usage.total_tokens > 0


async def test_voice_live_sdk_talks_in_text(azure: RunningSimulator) -> None:
    credential = AzureKeyCredential("simulated-key")
    async with connect(endpoint=azure.base_url, credential=credential, model="gpt-realtime") as connection:
        content = models.InputTextContentPart(text="Hello there")
        await connection.conversation.item.create(item=models.UserMessageItem(content=[content]))
        await connection.response.create(additional_instructions="Be brief.")
        events = await _until_response_done(connection)
    assert [event.transcript for event in events if "transcript" in event] == ["[simulated] you wrote: Hello there"]


async def test_voice_live_sdk_cancels_and_clears(pensive: RunningSimulator) -> None:
    credential = AzureKeyCredential("simulated-key")
    async with connect(endpoint=pensive.base_url, credential=credential, model="gpt-realtime") as connection:
        await connection.response.create()
        await connection.output_audio_buffer.clear()
        await connection.input_audio_buffer.clear()
        await connection.response.cancel()
        events = await _until_response_done(connection)
    assert events[-1].response.status == "cancelled"
    assert {"output_audio_buffer.cleared", "input_audio_buffer.cleared"} <= {event.type for event in events}


# --- Every event against the packages' models ------------------------------------------------------------------------


async def _varied_talk(caller: Caller, session: dict[str, Any]) -> list[dict[str, Any]]:
    """A talk in which every kind of event occurs that the simulator sends."""
    mcp = {"type": "mcp", "server_url": "https://mcp.example/", "allowed_tools": ["search"]}
    lost = mcp | {"server_label": "lost", "server_url": "https://mcp.invalid/"}
    asking = mcp | {"server_label": "asking"}
    clock = {"type": "function", "name": "clock", "description": "The time.", "parameters": {"type": "object"}}
    await caller.send("session.update", session=session | {"tools": [clock, asking, lost]})
    await caller.hear("mcp_list_tools.failed")
    await caller.say(SAID, piece_ms=500)
    await caller.hear("response.done")
    answer = caller.heard("response.done")[0]["response"]["output"][0]["id"]
    await caller.send("conversation.item.truncate", item_id=answer, content_index=0, audio_end_ms=10)
    await caller.send("conversation.item.retrieve", item_id=answer)
    await caller.send("conversation.item.delete", item_id=answer)
    user = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
    system = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be kind."}]}
    called = {"type": "function_call", "name": "clock", "arguments": "{}", "call_id": "call_1"}
    gave = {"type": "function_call_output", "call_id": "call_1", "output": "noon"}
    for item in (user, system, called, gave):
        await caller.send("conversation.item.create", item=item)
    text = {"output_modalities": ["text"]} if session.get("type") else {"modalities": ["text"]}
    await caller.send("response.create", response=text)
    await caller.hear("response.done")
    await caller.send("response.create")
    await caller.send("response.cancel")
    await caller.hear("response.done")
    await caller.send("input_audio_buffer.clear")
    for marker in ("[call clock {}]", "[call search {}]", "[fail]", "[incomplete]"):
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": marker}]}
        await caller.send("conversation.item.create", item=item)
        await caller.send("response.create")
        await caller.hear("response.done")
        request = caller.heard("response.done")[-1]["response"]["output"]
        if marker == "[call search {}]":
            approval = {"approval_request_id": request[0]["id"], "approve": True}
            await caller.send("conversation.item.create", item={"type": "mcp_approval_response", **approval})
            await caller.hear("response.done")
    assert {"completed", "cancelled", "failed", "incomplete"} == {
        event["response"]["status"] for event in caller.heard("response.done")
    }
    await caller.send("nonsense", event_id="mine")
    await caller.hear("error")
    return caller.events


@pytest.mark.slow
async def test_ga_events_match_openai_package(azure: RunningSimulator) -> None:
    parser: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
    async with call(azure, GA_PATH) as caller:
        events = await _varied_talk(caller, GA_SESSION)
    assert len({event["type"] for event in events}) >= 33
    for event in events:
        parsed = parser.validate_python(event, strict=True)
        assert parsed.type == event["type"]
        assert set(extras(parsed)) <= PACKAGE_LEAVES_OUT, event["type"]


def _unmet(value: Any, path: str = "") -> Iterator[str]:
    """Fields that an SDK model misses, or does not know."""
    fields = getattr(type(value), "_attr_to_rest_field", None)
    if fields is None:
        if isinstance(value, list):
            for part in value:
                yield from _unmet(part, path)
        return
    known = {field._rest_name for field in fields.values()}
    yield from (f"{path}.{name} is unknown" for name in value if name not in known)
    for attribute, field in fields.items():
        if field._rest_name in value:
            yield from _unmet(getattr(value, attribute), f"{path}.{attribute}")
        elif attribute in type(value).__annotations__ and "None" not in str(
            typing.get_args(type(value).__annotations__[attribute])
        ):
            yield f"{path}.{attribute} is missing"


# The SDK reads a user's audio with the model of a request, which brings the audio along; events never do.
# Its model of a session lacks fields that recorded sessions have.
SDK_LEAVES_OUT = {
    ".session.greeting is unknown",
    ".session.handoff is unknown",
    ".session.input_audio_transcription.prompt is unknown",
    ".session.truncation_strategy is unknown",
    ".session.turn_detection.appended_text_after_truncation is unknown",
    ".session.turn_detection.idle_timeout_ms is unknown",
    ".session.turn_detection.speech_duration_ms is unknown",
    ".session.object is unknown",
    ".usage is unknown",
    ".item.status is unknown",
    ".item.content.audio is missing",
}


@pytest.mark.slow
async def test_voice_live_events_match_sdk(azure: RunningSimulator) -> None:
    session = json.loads(json.dumps(SESSION.as_dict()))
    async with call(azure, VOICE_LIVE_PATH) as caller:
        events = await _varied_talk(caller, session)
        await caller.send("output_audio_buffer.clear")
        events.append(await caller.hear("output_audio_buffer.cleared"))
    assert len({event["type"] for event in events}) >= 31
    for event in events:
        parsed = models.ServerEvent._deserialize(event, [])  # type: ignore[no-untyped-call]
        if event["type"] == "conversation.item.done":
            # Voice Live tells that the user's audio is complete, by a name of GA's that its SDK does not know.
            assert type(parsed) is models.ServerEvent
            continue
        assert type(parsed) is not models.ServerEvent
        unmet = set(_unmet(parsed)) - SDK_LEAVES_OUT
        assert unmet == set(), event["type"]
