"""The session bodies, and GA's held strictly against the official package's own types."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_type_hints

import pytest
from openai.types.realtime import ClientSecretCreateParams, RealtimeSessionCreateRequestParam
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from strategies.base import SessionSpec
from strategies.session_model.agent_settings import AgentSettings, DetectionSettings
from strategies.session_model.session_fields import flat_session, ga_client_secret, ga_session, voice_live_session
from tests.strategies.fakes import FLAT_BODY, GA_BODY, SPEC

TOOL: Mapping[str, Any] = {
    "type": "function",
    "name": "find_order",
    "description": "Finds an order.",
    "parameters": {"type": "object", "properties": {"number": {"type": "string"}}},
}


def forbid_unknown_keys(kind: Any, seen: set[int] | None = None) -> None:
    """Makes every TypedDict beneath `kind` strict and closed when pydantic checks it."""
    seen = set() if seen is None else seen
    if id(kind) in seen:
        return
    seen.add(id(kind))
    if is_typeddict(kind):
        kind.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
        module = inspect.getmodule(kind)
        for hint in get_type_hints(kind, vars(module)).values():
            forbid_unknown_keys(hint, seen)
    for argument in getattr(kind, "__args__", ()):
        forbid_unknown_keys(argument, seen)


@pytest.fixture(scope="module")
def official() -> TypeAdapter[Any]:
    forbid_unknown_keys(ClientSecretCreateParams)
    return TypeAdapter(ClientSecretCreateParams, config=None)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, modalities=("text",)),
        replace(SPEC, modalities=("audio",)),
        replace(SPEC, tools=(TOOL,)),
        replace(
            SPEC,
            ttl_s=7200,
            settings=AgentSettings(turn_detection=DetectionSettings(threshold=0.25, prefix_padding_ms=0)),
        ),
    ],
)
def test_ga_body_fits_the_official_types(spec: SessionSpec, official: TypeAdapter[Any]) -> None:
    body = ga_client_secret(spec)
    assert official.validate_python(body) == body


@pytest.mark.parametrize(
    "spoil",
    [
        {"session": {"type": "realtime", "modalities": ["audio"]}},
        {"session": {"type": "realtime", "voice": "marin"}},
        {"session": {"type": "realtime", "audio": {"output": {"voices": "marin"}}}},
        {"session": {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad", "level": 1}}}}},
        {"expires_after": {"anchor": "created_at", "seconds": "60"}},
        {"ttl": 60},
        FLAT_BODY,
    ],
)
def test_official_types_are_closed_and_strict(spoil: dict[str, Any], official: TypeAdapter[Any]) -> None:
    with pytest.raises(ValidationError):
        official.validate_python(spoil)


def test_ga_session_has_official_fields_only() -> None:
    assert ga_session(replace(SPEC, tools=(TOOL,))).keys() <= RealtimeSessionCreateRequestParam.__annotations__.keys()


def test_both_bodies_come_from_one_spec() -> None:
    assert ga_client_secret(SPEC) == GA_BODY
    assert flat_session(SPEC) == FLAT_BODY


@pytest.mark.parametrize(
    ("modalities", "ga", "flat"),
    [
        (("audio", "text"), ["audio"], ["audio", "text"]),  # GA takes one: audio where both are asked for
        (("text", "audio"), ["audio"], ["text", "audio"]),
        (("audio",), ["audio"], ["audio"]),
        (("text",), ["text"], ["text"]),
    ],
)
def test_ga_gets_one_modality(modalities: tuple[str, ...], ga: list[str], flat: list[str]) -> None:
    spec = replace(SPEC, modalities=modalities)
    assert ga_session(spec)["output_modalities"] == ga
    assert flat_session(spec)["modalities"] == flat


def test_tools_are_in_both_bodies() -> None:
    spec = replace(SPEC, tools=(TOOL,))
    assert ga_session(spec)["tools"] == flat_session(spec)["tools"] == [TOOL]
    assert "tools" not in ga_session(SPEC)
    assert "tools" not in flat_session(SPEC)


def test_each_dialect_has_its_voice() -> None:
    assert ga_session(SPEC)["audio"]["output"]["voice"] == "marin"
    assert flat_session(SPEC)["voice"] == "en-US-Ava:DragonHDLatestNeural"


@pytest.mark.parametrize(
    ("model", "transcription"),
    [
        ("gpt-realtime", "whisper-1"),
        ("gpt-realtime-2.1-mini", "whisper-1"),
        ("gpt-realtime-datazone", "whisper-1"),
        ("gpt-4.1-mini", "azure-speech"),
        ("azure-realtime", "azure-speech"),
        ("phi4-mm-realtime", "azure-speech"),
    ],
)
def test_voice_live_transcription_per_model(model: str, transcription: str) -> None:
    session = voice_live_session(replace(SPEC, model=model))
    assert session["input_audio_transcription"] == {"model": transcription}


def test_transcription_deployment_is_for_ga() -> None:
    """The flat mints host whisper-1 themselves, whatever is deployed."""
    assert ga_session(SPEC)["audio"]["input"]["transcription"] == {"model": "my-transcriber"}
    assert flat_session(SPEC)["input_audio_transcription"] == {"model": "whisper-1"}
    assert flat_session(replace(SPEC, model="my-deployment"))["input_audio_transcription"] == {"model": "whisper-1"}
