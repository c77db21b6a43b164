"""Every key of an agent in each of Azure's four bodies, which the official packages accept."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from openai.types.realtime import ClientSecretCreateParams, RealtimeSessionCreateRequest, SessionUpdateEvent
from pydantic import TypeAdapter

from strategies.base import SessionSpec
from strategies.session_model.agent_settings import CLIENT_MAY_SET, LEFT_OUT, AgentSettings
from strategies.session_model.lost_settings import lost_settings
from strategies.session_model.running_session import agents_session, handoff_session, is_same_session
from strategies.session_model.session_fields import (
    SESSION_FIELDS,
    Body,
    flat_session,
    ga_client_secret,
    ga_realtime_session,
    voice_live_session,
)
from tests.relay.support.official_models import strictly, voice_live_session_fits
from tests.strategies.fakes import SPEC
from tests.strategies.test_session_body import forbid_unknown_keys
from token_broker.simulator.session_bodies.check import check
from token_broker.simulator.session_bodies.flat_session import FlatSession
from token_broker.simulator.session_bodies.ga_session import GaMintRequest, RealtimeSession
from token_broker.simulator.session_bodies.voice_live_session import VoiceLiveSession

BODIES: tuple[Body, ...] = ("ga_mint", "ga_socket", "voice_live", "flat_mint")
SERVER_VAD = {"type": "server_vad", "threshold": 0.6, "prefix_padding_ms": 300, "silence_duration_ms": 800}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}

LISA = {"character": "lisa", "customized": False}

# What an agent states of the session; the key's value in both of GA's bodies, on Voice Live, in the flat mint.
ROWS: list[tuple[Any, ...]] = [
    # --- language: two letters for GA, BCP 47 for Voice Live
    (
        {"language": "pt-BR"}, "transcription",
        {"model": "my-transcriber", "language": "pt"},
        {"model": "whisper-1", "language": "pt-BR"},
        {"model": "whisper-1", "language": "pt"},
    ),
    (
        {"language": "yue"}, "transcription",  # three letters: ISO 639-1 has none
        {"model": "my-transcriber"}, {"model": "whisper-1", "language": "yue"}, {"model": "whisper-1"},
    ),
    (
        {"language": "de-DE", "transcription": {"language": "en"}}, "transcription",
        {"model": "my-transcriber", "language": "en"}, {"model": "whisper-1", "language": "en"},
        {"model": "whisper-1", "language": "en"},
    ),
    (
        {"transcription": {"language": ["en-US", "zh-CN"]}}, "transcription",
        {"model": "my-transcriber"}, {"model": "whisper-1", "language": "en-US,zh-CN"}, {"model": "whisper-1"},
    ),
    (
        {"transcription": {"language": ["en-US", "en-GB"]}}, "transcription",
        {"model": "my-transcriber", "language": "en"}, {"model": "whisper-1", "language": "en-US,en-GB"},
        {"model": "whisper-1", "language": "en"},
    ),
    # --- prompt and phrases
    (
        {"transcription": {"prompt": "Names of streets."}}, "transcription",
        {"model": "my-transcriber", "prompt": "Names of streets."},
        {"model": "whisper-1", "prompt": "Names of streets."},
        {"model": "whisper-1", "prompt": "Names of streets."},
    ),
    (
        {"transcription": {"phrases": ["Zürich", "Elena"]}}, "transcription",
        {"model": "my-transcriber", "prompt": "Expect these words: Zürich, Elena."},
        {"model": "whisper-1", "phrase_list": ["Zürich", "Elena"]},
        {"model": "whisper-1", "prompt": "Zürich, Elena"},
    ),
    (
        {"transcription": {"model": "gpt-live-transcribe", "language": ["en", "de"], "phrases": ["Zürich"]}},
        "transcription",
        {"model": "gpt-live-transcribe", "languages": ["en", "de"], "keywords": ["Zürich"]},
        {"model": "whisper-1", "language": "en,de", "phrase_list": ["Zürich"]},
        {"model": "whisper-1", "prompt": "Zürich"},
    ),
    (
        {"transcription": {"model": "gpt-realtime-whisper", "prompt": "No.", "phrases": ["Zürich"]}}, "transcription",
        {"model": "gpt-realtime-whisper"},
        {"model": "whisper-1", "prompt": "No.", "phrase_list": ["Zürich"]},
        {"model": "whisper-1", "prompt": "No. Zürich"},
    ),
    (
        {"transcription": {"model": "gpt-4o-transcribe"}}, "transcription",
        {"model": "gpt-4o-transcribe"}, {"model": "gpt-4o-transcribe"}, {"model": "gpt-4o-transcribe"},
    ),
    (
        {"transcription": {"model": "azure-speech"}}, "transcription",  # Azure's own, and not with gpt-realtime
        {"model": "my-transcriber"}, {"model": "whisper-1"}, {"model": "whisper-1"},
    ),
    ({"transcription": False}, "transcription", LEFT_OUT, LEFT_OUT, LEFT_OUT),
    # --- turn detection
    ({}, "turn_detection", SERVER_VAD, SERVER_VAD, SERVER_VAD),
    (
        {"turn_detection": {"silence_duration_ms": 500, "create_response": False}}, "turn_detection",
        *[{**SERVER_VAD, "silence_duration_ms": 500, "create_response": False}] * 3,
    ),
    (
        {"turn_detection": {"type": "semantic_vad", "eagerness": "low", "interrupt_response": False}},
        "turn_detection",
        {"type": "semantic_vad", "eagerness": "low", "interrupt_response": False},
        {"type": "azure_semantic_vad", "interrupt_response": False},
        {"type": "semantic_vad", "eagerness": "low", "interrupt_response": False},
    ),
    (
        {"turn_detection": {"type": "azure_semantic_vad", "threshold": 0.4}}, "turn_detection",
        {"type": "semantic_vad"}, {"type": "azure_semantic_vad", "threshold": 0.4}, {"type": "semantic_vad"},
    ),
    (
        {"turn_detection": {"type": "azure_semantic_vad_multilingual"}}, "turn_detection",
        {"type": "semantic_vad"}, {"type": "azure_semantic_vad_multilingual"}, {"type": "semantic_vad"},
    ),
    ({"turn_detection": {"type": "none"}}, "turn_detection", None, None, None),
    # --- noise and echo
    ({}, "noise_reduction", LEFT_OUT, {"type": "azure_deep_noise_suppression"}, LEFT_OUT),
    ({"noise_reduction": "near_field"}, "noise_reduction", *[{"type": "near_field"}] * 3),
    ({"noise_reduction": "far_field"}, "noise_reduction", *[{"type": "far_field"}] * 3),
    (
        {"noise_reduction": "deep"}, "noise_reduction",
        {"type": "near_field"}, {"type": "azure_deep_noise_suppression"}, {"type": "near_field"},
    ),
    ({"noise_reduction": "off"}, "noise_reduction", LEFT_OUT, LEFT_OUT, LEFT_OUT),
    ({}, "echo_cancellation", LEFT_OUT, {"type": "server_echo_cancellation"}, LEFT_OUT),
    ({"echo_cancellation": "on"}, "echo_cancellation", LEFT_OUT, {"type": "server_echo_cancellation"}, LEFT_OUT),
    ({"echo_cancellation": "off"}, "echo_cancellation", LEFT_OUT, LEFT_OUT, LEFT_OUT),
    # --- the answer
    ({"temperature": 0.7}, "temperature", LEFT_OUT, 0.7, 0.7),
    ({"temperature": 0.3}, "temperature", LEFT_OUT, 0.3, LEFT_OUT),
    ({"max_output_tokens": 300}, "max_output_tokens", 300, 300, 300),
    ({"max_output_tokens": "inf"}, "max_output_tokens", "inf", "inf", "inf"),
    ({"speed": 1.2}, "speed", 1.2, LEFT_OUT, 1.2),
    ({"tool_choice": "required"}, "tool_choice", "required", "required", "required"),
    (
        {"tool_choice": {"type": "function", "name": "f"}}, "tool_choice",
        {"type": "function", "name": "f"}, {"type": "function", "name": "f"}, LEFT_OUT,
    ),
    (
        {"tool_choice": {"type": "mcp", "server_label": "docs"}}, "tool_choice",
        {"type": "mcp", "server_label": "docs"}, LEFT_OUT, LEFT_OUT,
    ),
    ({"parallel_tool_calls": False}, "parallel_tool_calls", LEFT_OUT, False, LEFT_OUT),
    ({"reasoning_effort": "low"}, "reasoning_effort", LEFT_OUT, LEFT_OUT, LEFT_OUT),
]  # fmt: skip
REASONING: list[tuple[Any, ...]] = [
    ({"reasoning_effort": "low"}, "reasoning_effort", "low", "low", LEFT_OUT),
    ({"reasoning_effort": "none"}, "reasoning_effort", LEFT_OUT, "none", LEFT_OUT),
    ({"parallel_tool_calls": True}, "parallel_tool_calls", True, True, LEFT_OUT),
]


def spec_of(stated: Mapping[str, Any], **more: Any) -> SessionSpec:
    return replace(SPEC, settings=AgentSettings.model_validate(stated), tools=(TOOL,), **more)


@cache
def _mint_params() -> TypeAdapter[Any]:
    forbid_unknown_keys(ClientSecretCreateParams)
    return TypeAdapter(ClientSecretCreateParams)


def body_of(spec: SessionSpec, body: Body) -> dict[str, Any]:
    """The body, held against the packages and the strict simulator."""
    match body:
        case "ga_mint":
            minted = ga_client_secret(spec)
            assert _mint_params().validate_python(minted) == minted
            check(GaMintRequest, minted)
            return dict(minted["session"])
        case "ga_socket":
            session = ga_realtime_session(spec)
            strictly(RealtimeSessionCreateRequest, session)
            check(RealtimeSession, session)
        case "voice_live":
            session = voice_live_session(spec)
            voice_live_session_fits(session)
            check(VoiceLiveSession, session)
        case "flat_mint":
            session = flat_session(spec)
            check(FlatSession, session)
    return session


def value_in(session: Any, name: str, body: Body) -> Any:
    (row,) = (each for each in SESSION_FIELDS if each.name == name)
    for part in row.path_in(body) or ("nowhere",):
        if not isinstance(session, dict) or part not in session:
            return LEFT_OUT
        session = session[part]
    return session


@pytest.mark.parametrize(("stated", "name", "ga", "voice_live", "flat"), ROWS)
def test_key_in_each_body(stated: dict[str, Any], name: str, ga: Any, voice_live: Any, flat: Any) -> None:
    spec = spec_of(stated)
    found = [value_in(body_of(spec, body), name, body) for body in BODIES]
    assert found == [ga, ga, voice_live, flat]


@pytest.mark.parametrize(("stated", "name", "ga", "voice_live", "flat"), REASONING)
def test_key_of_reasoning_models(stated: dict[str, Any], name: str, ga: Any, voice_live: Any, flat: Any) -> None:
    for more in ({"model_family": "gpt-realtime-2"}, {"model": "gpt-realtime-2.1-mini"}):
        spec = spec_of(stated, **more)
        assert [value_in(body_of(spec, body), name, body) for body in BODIES] == [ga, ga, voice_live, flat]


@pytest.mark.parametrize(
    ("model", "family", "is_sent"),
    [
        ("gpt-realtime-2.1", "gpt-realtime", False),  # what an operator says of a deployment counts, not its name
        ("talker", "gpt-realtime-2", True),
        ("talker", "other", False),
        ("gpt-5-mini", "other", True),
        ("gpt-realtime-2.1", "other", False),
        ("gpt-realtime-2.1", "", True),
        ("talker", "", False),
    ],
)
def test_family_counts_before_the_name(model: str, family: str, is_sent: bool) -> None:
    spec = spec_of({"reasoning_effort": "low"}, model=model, model_family=family)
    assert ("reasoning_effort" in body_of(spec, "voice_live")) is is_sent


def test_every_key_is_in_the_table() -> None:
    keys = set(AgentSettings.model_fields) - {"language", "session"}
    rows = {row.name for row in SESSION_FIELDS}
    assert keys <= rows
    assert keys <= {name for _, name, *_ in (*ROWS, *REASONING)}


@pytest.mark.parametrize(
    ("voice", "sent"),
    [
        ("en-US-Ava:DragonHDLatestNeural", {"type": "azure-standard", "name": "en-US-Ava:DragonHDLatestNeural"}),
        ("alloy", {"type": "openai", "name": "alloy"}),
        ("marin", {"type": "openai", "name": "marin"}),
        *[
            (table, table)
            for table in (
                {"type": "azure-custom", "name": "Ours", "endpoint_id": "e-1", "style": "calm"},
                {"type": "azure-personal", "name": "p-1", "model": "DragonLatestNeural"},
                {"type": "azure-realtime-native", "name": "ava"},
                {"type": "azure-standard", "name": "en-US-GuyNeural", "rate": "1.2"},
            )
        ],
    ],
)
def test_voice_on_voice_live(voice: Any, sent: dict[str, Any]) -> None:
    spec = replace(SPEC, voices={"ga": "marin", "preview": voice})
    assert body_of(spec, "voice_live")["voice"] == sent


def test_custom_voice_on_ga() -> None:
    spec = replace(SPEC, voices={"ga": {"id": "voice_1234"}, "preview": "alloy"})
    for body in ("ga_mint", "ga_socket"):
        assert body_of(spec, body)["audio"]["output"]["voice"] == {"id": "voice_1234"}
    assert flat_session(spec)["voice"] == "alloy"


@pytest.mark.parametrize(
    ("language", "voice", "accents"),
    [
        ("de-AT", "en-US-Ava:DragonHDLatestNeural", ["de-AT"]),
        ("de", "en-US-Ava:DragonHDLatestNeural", None),  # no locale without a region
        ("de-AT", "alloy", None),
        ("de-AT", {"type": "azure-standard", "name": "de-AT-IngridNeural", "locale": "de-AT"}, None),
    ],
)
def test_language_is_a_wish_to_the_voice(language: str, voice: Any, accents: list[str] | None) -> None:
    spec = replace(spec_of({"language": language}), voices={"ga": "marin", "preview": voice})
    assert body_of(spec, "voice_live")["voice"].get("prefer_locales") == accents


@pytest.mark.parametrize(
    ("family", "model", "stated", "sent"),
    [
        ("", "gpt-realtime-mini", {}, "whisper-1"),
        ("gpt-realtime", "my-deployment", {}, "whisper-1"),
        ("other", "gpt-realtime-in-name-only", {}, "azure-speech"),
        ("", "gpt-4.1-mini", {}, "azure-speech"),
        ("", "gpt-4.1-mini", {"model": "mai-transcribe-1"}, "mai-transcribe-1"),
        ("", "gpt-4.1-mini", {"model": "whisper-1"}, "azure-speech"),
        ("", "gpt-realtime", {"model": "mai-transcribe-1"}, "whisper-1"),
        ("", "gpt-realtime", {"model": "our-deployment"}, "whisper-1"),
    ],
)
def test_voice_live_transcriber_by_family(family: str, model: str, stated: dict[str, Any], sent: str) -> None:
    spec = spec_of({"transcription": stated}, model=model, model_family=family)
    assert body_of(spec, "voice_live")["input_audio_transcription"]["model"] == sent


def test_azure_speech_gets_no_prompt() -> None:
    spec = spec_of({"transcription": {"prompt": "Streets.", "phrases": ["Zürich"]}}, model="gpt-4.1")
    sent = body_of(spec, "voice_live")["input_audio_transcription"]
    assert sent == {"model": "azure-speech", "phrase_list": ["Zürich"]}


@pytest.mark.parametrize(("version", "is_sent"), [("2025-10-01", False), ("2026-07-15", True), ("", True)])
def test_parallel_calls_by_api_version(version: str, is_sent: bool) -> None:
    spec = spec_of({"parallel_tool_calls": True}, voice_live_version=version)
    assert ("parallel_tool_calls" in voice_live_session(spec)) is is_sent


@pytest.mark.parametrize("approval", [{"never": ["search"]}, {"never": {"tool_names": ["search"]}}])
def test_mcp_in_each_body(approval: Any) -> None:
    server = {
        "type": "mcp", "server_label": "docs", "server_url": "https://mcp.example.com", "server_description": "Docs.",
        "allowed_tools": ["search"], "require_approval": approval,
    }  # fmt: skip
    spec = replace(spec_of({}), tools=(TOOL, server))
    for body in ("ga_mint", "ga_socket"):
        assert body_of(spec, body)["tools"] == [
            TOOL,
            {**server, "require_approval": {"never": {"tool_names": ["search"]}}},
        ]
    told = {name: value for name, value in server.items() if name != "server_description"}
    assert body_of(spec, "voice_live")["tools"] == [TOOL, {**told, "require_approval": {"never": ["search"]}}]
    assert body_of(spec, "flat_mint")["tools"] == [TOOL]
    assert [each.key for each in lost_settings(spec, "flat_mint")] == ["tools of MCP servers"]


def test_raw_fields_are_laid_over_last() -> None:
    overlay = {
        "ga": {"truncation": "disabled", "audio": {"input": {"turn_detection": {"idle_timeout_ms": 6000}}}},
        "preview": {"avatar": LISA, "turn_detection": {"type": "azure_semantic_vad_en"}},
    }
    spec = spec_of({"session": overlay})
    for body in ("ga_mint", "ga_socket"):
        session = body_of(spec, body)
        assert session["truncation"] == "disabled"
        assert session["audio"]["input"]["turn_detection"] == {**SERVER_VAD, "idle_timeout_ms": 6000}
        assert session["audio"]["output"]["voice"] == "marin"
    session = body_of(spec, "voice_live")
    assert (session["avatar"], session["turn_detection"]) == (LISA, {"type": "azure_semantic_vad_en"})
    assert "truncation" not in flat_session(spec)
    assert flat_session(spec)["turn_detection"] == SERVER_VAD


@pytest.mark.parametrize(
    ("stated", "body", "told"),
    [
        ({"speed": 1.2}, "voice_live", ["speed is left out"]),
        ({"temperature": 0.7}, "ga_mint", ["temperature is left out"]),
        ({"echo_cancellation": "on"}, "ga_socket", ["echo_cancellation is left out"]),
        ({"noise_reduction": "deep"}, "ga_mint", ["noise_reduction is sent as near_field"]),
        (
            {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}},
            "voice_live",
            ["turn_detection.type is sent as azure_semantic_vad", "turn_detection.eagerness is left out"],
        ),
        ({"reasoning_effort": "low"}, "ga_mint", ["reasoning_effort is left out"]),
        (
            {"language": "yue"},
            "ga_mint",
            ["language is left out: my-transcriber takes one language by its two letters"],
        ),
        (
            {"transcription": {"model": "gpt-realtime-whisper", "prompt": "x", "phrases": ["Zürich"]}},
            "ga_socket",
            [
                "transcription.prompt is left out: gpt-realtime-whisper takes none",
                "transcription.phrases is left out: gpt-realtime-whisper takes none",
            ],
        ),
        (
            {"transcription": {"model": "our-deployment"}},
            "voice_live",
            ["transcription.model is sent as whisper-1"],
        ),
        ({"session": {"preview": {"avatar": {}}}}, "voice_live", []),
        ({"transcription": False, "turn_detection": {"type": "none"}, "noise_reduction": "off"}, "voice_live", []),
        ({"transcription": False, "turn_detection": {"type": "none"}, "noise_reduction": "off"}, "ga_mint", []),
        ({"language": "pt-BR", "speed": 1, "max_output_tokens": 9, "tool_choice": "none"}, "ga_mint", []),
    ],
)
def test_what_a_body_lacks_is_told(stated: dict[str, Any], body: Body, told: list[str]) -> None:
    assert [f"{each.key} {each.why}" for each in lost_settings(spec_of(stated), body)] == told


OFF = {"transcription": False, "noise_reduction": "off", "turn_detection": {"type": "none"}, "speed": 1.2}


def test_update_in_mid_talk_switches_off() -> None:
    """Never the voice, nor what is the talk's."""
    update = agents_session(spec_of(OFF), "ga")
    assert update == {
        "type": "realtime",
        "instructions": "Be brief.",
        "audio": {
            "input": {"turn_detection": None, "transcription": None, "noise_reduction": None},
            "output": {"speed": 1.2},
        },
        "tools": [TOOL],
    }
    SessionUpdateEvent.model_validate({"type": "session.update", "session": update})
    flat = agents_session(replace(spec_of(OFF), tools=()), "preview")
    assert flat == {
        "instructions": "Be brief.",
        "turn_detection": None,
        "input_audio_transcription": None,
        "input_audio_noise_reduction": None,
        "input_audio_echo_cancellation": {"type": "server_echo_cancellation"},
        "tools": [],
    }
    check(VoiceLiveSession, flat)


@pytest.mark.parametrize(
    ("old", "new", "changes", "ga"),
    [
        ({}, {}, {}, {}),
        ({"language": "de"}, {"language": "de"}, {}, {}),
        (
            {"language": "de"}, {"language": "fr"}, {},
            {"audio": {"input": {"transcription": {"model": "my-transcriber", "language": "fr"}}}},
        ),
        # What only the first one states gets Azure's default again.
        (
            {"max_output_tokens": 9, "speed": 1.4, "tool_choice": "required"}, OFF, {},
            {
                "audio": {
                    "input": {"turn_detection": None, "transcription": None},
                    "output": {"speed": 1.2},
                },
                "max_output_tokens": "inf",
                "tool_choice": "auto",
            },
        ),
        ({"noise_reduction": "deep"}, {}, {}, {"audio": {"input": {"noise_reduction": None}}}),
        # What the client changed stays, where the second one lets it.
        ({"speed": 1.4}, {"speed": 1.1}, {"audio": {"output": {"speed": 1.5}}}, {}),
        ({}, {}, {"audio": {"input": {"turn_detection": None}}}, {}),
        ({}, {}, {"max_output_tokens": 5}, {"max_output_tokens": "inf"}),
        ({}, {}, {"output_modalities": ["text"]}, {"output_modalities": ["audio"]}),
        ({}, {}, {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, {}),
    ],
)  # fmt: skip
def test_handoff_states_what_differs(old: Any, new: Any, changes: Any, ga: Any) -> None:
    may_set = CLIENT_MAY_SET - {"max_output_tokens", "modalities", "formats"}
    update = handoff_session(spec_of(old), spec_of(new), "ga", changes=changes, may_set=may_set)
    assert update == {"type": "realtime", "instructions": "Be brief.", "tools": [TOOL], **ga}
    flat = handoff_session(spec_of(old), spec_of(new), "preview", changes={}, may_set=may_set)
    check(VoiceLiveSession, flat)
    voice_live_session_fits(flat)


def test_update_leaves_the_clients_alone() -> None:
    spec = spec_of({"speed": 1.2, "noise_reduction": "near_field"})
    update = agents_session(spec, "ga", without=frozenset({"speed", "noise_reduction", "turn_detection"}))
    assert update["audio"] == {"input": {"transcription": {"model": "my-transcriber"}}}


@pytest.mark.parametrize(
    ("old", "new", "ga", "preview"),
    [
        ({}, {"speed": 1.2, "language": "de"}, True, True),
        ({}, {"turn_detection": {"silence_duration_ms": 300}}, True, True),
        ({}, {"turn_detection": {"type": "semantic_vad"}}, True, False),
        ({"reasoning_effort": "low"}, {}, False, False),
        ({}, {"reasoning_effort": "low"}, True, True),
        ({}, {"session": {"ga": {"truncation": "disabled"}}}, False, True),
    ],
)
def test_which_handoffs_keep_the_session(old: Any, new: Any, ga: bool, preview: bool) -> None:
    before, after = AgentSettings.model_validate(old), AgentSettings.model_validate(new)
    assert (is_same_session(before, after, "ga"), is_same_session(before, after, "preview")) == (ga, preview)
