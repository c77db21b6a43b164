"""GA's mint: what it takes, what it refuses, and that it agrees with the `openai` package."""

import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.realtime import ClientSecretCreateParams, ClientSecretCreateResponse
from pydantic import TypeAdapter

from token_broker.simulator import RunningSimulator, SimulatorConfig, serve
from token_broker.simulator.session_bodies import ga_session
from token_broker.simulator.session_bodies.check import InvalidRequest, check

PATH = "/openai/v1/realtime/client_secrets"
MINIMAL: dict[str, Any] = {"session": {"type": "realtime", "model": "gpt-realtime"}}
FULL: dict[str, Any] = {
    "expires_after": {"anchor": "created_at", "seconds": 60},
    "session": {
        "type": "realtime",
        "model": "gpt-realtime",
        "instructions": "Be brief.",
        "output_modalities": ["audio"],
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "noise_reduction": {"type": "near_field"},
                "transcription": {"model": "whisper-1", "language": "en"},
                "turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 500},
            },
            "output": {"voice": "marin", "speed": 1.1},
        },
        "tools": [{"type": "function", "name": "look_up", "parameters": {"type": "object"}}],
        "tool_choice": {"type": "function", "name": "look_up"},
        "max_output_tokens": 1000,
        "tracing": None,
        "truncation": {"type": "retention_ratio", "retention_ratio": 0.8},
    },
}


async def test_openai_client_mints_with_url_and_key(azure: RunningSimulator) -> None:
    async with openai.AsyncOpenAI(base_url=f"{azure.base_url}/openai/v1", api_key="simulated-key") as client:
        secret = await client.realtime.client_secrets.create(**FULL)
    assert secret.value.startswith("ek_")
    assert 50 < secret.expires_at - time.time() <= 60
    assert secret.session.type == "realtime"
    assert secret.session.instructions == "Be brief."
    assert secret.session.id.startswith("sess_")


async def test_mint_answer_matches_openai_package(keyed: httpx.AsyncClient) -> None:
    answer = await keyed.post(PATH, json=FULL)
    assert answer.status_code == 200
    ClientSecretCreateResponse.model_validate(answer.json(), strict=True, extra="forbid")


async def test_secret_lives_two_hours_by_default(keyed: httpx.AsyncClient) -> None:
    answer = await keyed.post(PATH, json=MINIMAL)
    assert 7190 < answer.json()["expires_at"] - time.time() <= 7200


async def test_transcription_session_is_minted(keyed: httpx.AsyncClient) -> None:
    session = {"type": "transcription", "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
    answer = await keyed.post(PATH, json={"session": session})
    assert answer.status_code == 200
    assert ClientSecretCreateResponse.model_validate(answer.json()).session.type == "transcription"


@pytest.mark.parametrize("credential", [{"api-key": "simulated-key"}, {"authorization": "Bearer simulated-key"}])
async def test_key_is_taken_as_header_or_bearer(azure: RunningSimulator, credential: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=azure.base_url, headers=credential) as client:
        assert (await client.post(PATH, json=MINIMAL)).status_code == 200


async def test_answers_carry_simulated_and_request_id(keyed: httpx.AsyncClient) -> None:
    for answer in (await keyed.post(PATH, json=MINIMAL), await keyed.post(PATH, json={}), await keyed.get("/none")):
        assert answer.headers["x-simulated"] == "true"
        assert answer.headers["apim-request-id"]
        assert answer.headers["date"]


def _with(path: str, value: object) -> dict[str, Any]:
    """FULL with the value at `a.b.c`."""
    *parents, last = path.split(".")
    body = at = TypeAdapter(dict[str, Any]).validate_json(TypeAdapter(dict[str, Any]).dump_json(FULL))
    for parent in parents:
        at = at.setdefault(parent, {})
    at[last] = value
    return body


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": "gpt-realtime", "modalities": ["audio"]}, "unknown_parameter", "model"),
        ({}, "missing_required_parameter", "session"),
        ({"session": {"model": "gpt-realtime"}}, "missing_required_parameter", "session.type"),
        ({"session": {"type": "realtime"}}, "missing_required_parameter", "session.model"),
        ({"session": {"type": "live", "model": "gpt-realtime"}}, "invalid_value", "session"),
        (_with("session.voice", "marin"), "unknown_parameter", "session.voice"),
        (_with("session.turn_detection", None), "unknown_parameter", "session.turn_detection"),
        (_with("session.audio.input.rate", 24000), "unknown_parameter", "session.audio.input.rate"),
        (_with("session.audio.output.voice", "en-US-GuyNeural"), "invalid_value", "session.audio.output.voice"),
        (_with("session.audio.output.speed", 2), "invalid_value", "session.audio.output.speed"),
        (_with("session.output_modalities", ["audio", "text"]), "invalid_value", "session.output_modalities"),
        (_with("session.output_modalities", []), "invalid_value", "session.output_modalities"),
        (_with("session.instructions", 7), "invalid_type", "session.instructions"),
        (_with("session.max_output_tokens", 5000), "invalid_value", "session.max_output_tokens"),
        (_with("session.tools", [{"type": "function"}]), "missing_required_parameter", "session.tools[0].name"),
        (_with("session.audio.input.turn_detection.threshold", 1.5), "invalid_value", "…turn_detection.threshold"),
        (_with("session.audio.input.turn_detection.eagerness", "low"), "unknown_parameter", "…eagerness"),
        (_with("session.audio.input.format.rate", 16000), "invalid_value", "session.audio.input.format.rate"),
        (_with("expires_after.seconds", 9), "invalid_value", "expires_after.seconds"),
        (_with("expires_after.seconds", 7201), "invalid_value", "expires_after.seconds"),
        (_with("expires_after.seconds", "60"), "invalid_type", "expires_after.seconds"),
        (_with("expires_after.anchor", "now"), "invalid_value", "expires_after.anchor"),
        ([], "invalid_type", ""),
    ],
)
async def test_wrong_body_is_refused_and_named(keyed: httpx.AsyncClient, body: object, code: str, param: str) -> None:
    answer = await keyed.post(PATH, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, code, "invalid_request_error")
    assert error["param"].endswith(param.removeprefix("…"))


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"session": NaN}', "[" * 100_000])
async def test_body_without_json_is_refused(keyed: httpx.AsyncClient, text: str) -> None:
    answer = await keyed.post(PATH, content=text, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_missing_deployment_is_404(keyed: httpx.AsyncClient) -> None:
    answer = await keyed.post(PATH, json={"session": {"type": "realtime", "model": "gpt-9"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "DeploymentNotFound")


async def test_api_version_is_refused(keyed: httpx.AsyncClient) -> None:
    answer = await keyed.post(f"{PATH}?api-version=2025-10-01", json=MINIMAL)
    assert answer.status_code == 400
    assert "api-version" in answer.json()["error"]["message"]


async def test_beta_header_is_refused(keyed: httpx.AsyncClient) -> None:
    answer = await keyed.post(PATH, json=MINIMAL, headers={"OpenAI-Beta": "realtime=v1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "beta_api_shape_disabled")


async def test_other_content_type_is_refused(keyed: httpx.AsyncClient) -> None:
    answer = await keyed.post(PATH, content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


async def test_large_body_is_413_in_html(keyed: httpx.AsyncClient) -> None:
    answer = await keyed.post(PATH, content=b" " * 1_100_000)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "text/html")


async def test_clock_offset_shows_in_date_and_expiry() -> None:
    async with (
        serve(SimulatorConfig(clock_offset_s=-90)) as azure,
        httpx.AsyncClient(base_url=azure.base_url) as client,
    ):
        answer = await client.post(PATH, json=FULL, headers={"api-key": "simulated-key"})
    assert answer.json()["expires_at"] - time.time() < 0
    assert (time.time() - _unix(answer.headers["date"])) >= 89


def _unix(date: str) -> float:
    return parsedate_to_datetime(date).timestamp()


# --- Agreement with the openai package ---------------------------------------------------------------------------

_TYPES: TypeAdapter[Any] = TypeAdapter(ClientSecretCreateParams)
_word = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


def _some(required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> Any:
    return st.fixed_dictionaries(required, optional=optional)


_VADS = _some(
    {"type": st.just("server_vad")},
    threshold=st.floats(0, 1),
    prefix_padding_ms=st.integers(0, 5000),
    silence_duration_ms=st.integers(0, 10_000),
    idle_timeout_ms=st.none() | st.integers(5000, 30_000),
    create_response=st.booleans(),
    interrupt_response=st.booleans(),
) | _some(
    {"type": st.just("semantic_vad")},
    eagerness=st.sampled_from(["low", "medium", "high", "auto"]),
    create_response=st.booleans(),
)
_FORMATS = _some({}, type=st.just("audio/pcm"), rate=st.just(24000))
_SESSIONS = _some(
    {"type": st.just("realtime"), "model": st.just("gpt-realtime")},
    instructions=_word,
    output_modalities=st.sampled_from([["audio"], ["text"]]),
    include=st.just(["item.input_audio_transcription.logprobs"]),
    max_output_tokens=st.just("inf") | st.integers(1, 4096),
    parallel_tool_calls=st.booleans(),
    prompt=_some({"id": _word}, version=_word),
    reasoning=_some({}, effort=st.sampled_from(["minimal", "low", "medium", "high", "xhigh"])),
    tool_choice=st.sampled_from(["none", "auto", "required"])
    | _some({"type": st.just("function"), "name": _word})
    | _some({"type": st.just("mcp"), "server_label": _word}, name=_word),
    tools=st.lists(
        _some({"type": st.just("function"), "name": _word.filter(bool)}, description=_word)
        | _some({"type": st.just("mcp"), "server_label": _word}, server_url=_word, allowed_tools=st.lists(_word)),
        max_size=3,
    ),
    tracing=st.none() | st.just("auto") | _some({}, group_id=_word, workflow_name=_word),
    truncation=st.sampled_from(["auto", "disabled"])
    | _some({"type": st.just("retention_ratio"), "retention_ratio": st.floats(0, 1)}),
    audio=_some(
        {},
        input=_some(
            {},
            format=_FORMATS,
            noise_reduction=_some({}, type=st.sampled_from(["near_field", "far_field"]), strength=st.floats(0, 1)),
            transcription=_some({}, model=_word, language=_word, prompt=_word, languages=st.lists(_word, max_size=2)),
            turn_detection=st.none() | _VADS,
        ),
        output=_some(
            {},
            format=_FORMATS,
            speed=st.floats(0.25, 1.5),
            voice=st.sampled_from(["alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin"]),
        ),
    ),
)
_BODIES = _some(
    {"session": _SESSIONS}, expires_after=_some({}, anchor=st.just("created_at"), seconds=st.integers(10, 7200))
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_BODIES)
def test_bodies_of_openai_types_pass(body: dict[str, Any]) -> None:
    _TYPES.validate_python(body)
    check(ga_session.GaMintRequest, body)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_BODIES, st.data())
def test_unknown_field_is_named_at_any_depth(body: dict[str, Any], data: st.DataObject) -> None:
    data.draw(st.sampled_from(list(_objects(body))))["surprise"] = 1
    with pytest.raises(InvalidRequest, match="surprise"):
        check(ga_session.GaMintRequest, body)


def _objects(value: Any) -> Any:
    """Every object of a body whose fields are fixed."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _objects(part)
    elif isinstance(value, list):
        for part in value:
            yield from _objects(part)


def test_all_fields_of_openai_types_are_known() -> None:
    theirs = _TYPES.json_schema()
    ours = ga_session.GaMintRequest.model_json_schema()
    for their_name, our_name in [
        ("RealtimeSessionCreateRequestParam", "RealtimeSession"),
        ("RealtimeAudioConfigInputParam", "AudioInput"),
        ("RealtimeAudioConfigOutputParam", "AudioOutput"),
        ("AudioTranscriptionParam", "Transcription"),
        ("ServerVad", "ServerVad"),
        ("SemanticVad", "SemanticVad"),
        ("Mcp", "McpToolBody"),
    ]:
        assert set(theirs["$defs"][their_name]["properties"]) == set(ours["$defs"][our_name]["properties"])


async def test_secret_lives_7200_s_by_default(keyed: httpx.AsyncClient) -> None:
    before = int(time.time())
    minted = await keyed.post(
        "/openai/v1/realtime/client_secrets", json={"session": {"type": "realtime", "model": "gpt-realtime"}}
    )
    # Recorded: exactly so; OpenAI's own default is 600 (docs/azure.md §2.1).
    assert before + 7200 <= minted.json()["expires_at"] <= int(time.time()) + 7200
