"""Every session that the broker sends fits the models of Microsoft's and OpenAI's SDKs."""

import json

import pytest
from azure.ai.voicelive import models
from openai.types.realtime import RealtimeSessionCreateRequest, SessionUpdateEvent
from openai.types.realtime.conversation_item_create_event import ConversationItemCreateEvent

from strategies.base import Dialect, SessionSpec
from strategies.session_model.agent_settings import CLIENT_MAY_SET
from strategies.session_model.running_session import handoff_session
from strategies.session_model.session_fields import ga_realtime_session, voice_live_session
from tests.relay.support.broker import make_settings
from tests.relay.support.official_models import known_to_microsoft, strictly, voice_live_session_fits
from token_broker.memory.types import Role
from token_broker.relay.confirmation.confirmation import Confirmation
from token_broker.relay.resume.history import Item
from token_broker.relay.resume.replay import NewSession, replay
from token_broker.relay.resume.restored import Restored
from token_broker.relay.resume.steps import Say
from token_broker.sessions.agent_tools import FunctionTool
from token_broker.sessions.agents import load_agents
from token_broker.sessions.plans import session_spec

TOOL = {"type": "function", "name": "look_up", "description": "x", "parameters": {"type": "object", "properties": {}}}


def specs() -> list[SessionSpec]:
    settings = make_settings("http://127.0.0.1:1")
    agents = load_agents()
    with_tool = agents["elena"].model_copy(update={"tools": (FunctionTool.model_validate(TOOL),)})
    return [session_spec(agent, settings, recalled="FACTS") for agent in (*agents.values(), with_tool)]


@pytest.mark.parametrize("spec", specs(), ids=range(4))
def test_voice_live_session_fits_microsofts_sdk(spec: SessionSpec) -> None:
    session = voice_live_session(spec)
    known_to_microsoft(session, models.RequestSession)
    known_to_microsoft(session["voice"], models.AzureStandardVoice)
    known_to_microsoft(session["turn_detection"], models.ServerVad)
    known_to_microsoft(session["input_audio_transcription"], models.AudioInputTranscriptionOptions)
    known_to_microsoft(session["input_audio_noise_reduction"], models.AudioNoiseReduction)
    known_to_microsoft(session["input_audio_echo_cancellation"], models.AudioEchoCancellation)
    assert models.AzureVoiceType(session["voice"]["type"]) is models.AzureVoiceType.AZURE_STANDARD
    assert models.TurnDetectionType(session["turn_detection"]["type"]) is models.TurnDetectionType.SERVER_VAD
    assert models.InputAudioFormat(session["input_audio_format"]) is models.InputAudioFormat.PCM16
    assert [models.Modality(name) for name in session["modalities"]]
    for tool in session.get("tools", []):
        known_to_microsoft(tool, models.FunctionTool)


@pytest.mark.parametrize("spec", specs(), ids=range(4))
def test_ga_session_fits_openais_sdk(spec: SessionSpec) -> None:
    session = ga_realtime_session(spec)
    strictly(RealtimeSessionCreateRequest, session)
    strictly(SessionUpdateEvent, {"type": "session.update", "event_id": "e", "session": session})
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert session["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": 24_000}


def test_turn_detection_has_its_defaults() -> None:
    expected = {"type": "server_vad", "threshold": 0.6, "prefix_padding_ms": 300, "silence_duration_ms": 800}
    assert voice_live_session(specs()[0])["turn_detection"] == expected
    assert ga_realtime_session(specs()[0])["audio"]["input"]["turn_detection"] == expected


def test_handoff_update_fits_both_sdks() -> None:
    first, *others = specs()
    for spec in others:
        session = handoff_session(first, spec, "ga", changes={}, may_set=CLIENT_MAY_SET)
        strictly(SessionUpdateEvent, json.loads(Confirmation(session, event_id="e").update))
        voice_live_session_fits(handoff_session(first, spec, "preview", changes={}, may_set=CLIENT_MAY_SET))


@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("dialect", ["ga", "preview"])
def test_history_items_fit_both_sdks(dialect: Dialect, role: Role) -> None:
    said = Item("x" * 40, role, texts={0: "What was said."})
    (event,) = replay([Say(said)], NewSession(dialect, {}), old=dialect, restored=Restored()).messages
    assert len(json.loads(event)["item"]["id"]) <= 32
    item = json.loads(event)["item"]
    if dialect == "ga":
        strictly(ConversationItemCreateEvent, json.loads(event))
    else:
        model = models.UserMessageItem if role == "user" else models.AssistantMessageItem
        known_to_microsoft(item, model)
        assert item["content"][0]["type"] in {"input_text", "text"}
