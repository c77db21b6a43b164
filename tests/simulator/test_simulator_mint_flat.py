"""The first version's three flat mints, and the project's implied GA one."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from token_broker.simulator import Kind, SimulatorConfig, serve

DIRECT = "/openai/deployments/gpt-realtime/realtime/client_secrets"
UNIFIED = "/openai/realtime/client_secrets"
PROJECT = "/api/projects/demo/openai/realtime/client_secrets"
PROJECT_GA = "/api/projects/demo/openai/v1/realtime/client_secrets"
GA = "/openai/v1/realtime/client_secrets"
VERSION = "?api-version=2025-10-01"
FLAT: dict[str, Any] = {
    "model": "gpt-realtime",
    "modalities": ["audio", "text"],
    "instructions": "You are a helpful assistant.",
    "voice": "en-US-Ava:DragonHDLatestNeural",
    "input_audio_transcription": {"model": "whisper-1"},
    "turn_detection": {
        "type": "server_vad",
        "threshold": 0.6,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 800,
    },
}
NESTED: dict[str, Any] = {"session": {"type": "realtime", "model": "gpt-realtime"}}
SECOND_KEY = {"Ocp-Apim-Subscription-Key": "simulated-key"}


@pytest.mark.parametrize("path", [DIRECT, UNIFIED, PROJECT])
@pytest.mark.parametrize("version", ["2025-10-01", "2024-10-01-preview"])
async def test_flat_mint_lives_a_minute_iso_expiry(keyed: httpx.AsyncClient, path: str, version: str) -> None:
    answer = await keyed.post(f"{path}?api-version={version}", json=FLAT, headers=SECOND_KEY)
    assert answer.status_code == 200
    assert set(answer.json()) == {"value", "expires_at"}
    assert answer.json()["expires_at"].endswith("Z")
    left = datetime.fromisoformat(answer.json()["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)


async def test_deployment_route_takes_model_from_path(keyed: httpx.AsyncClient) -> None:
    body = {name: value for name, value in FLAT.items() if name != "model"}
    assert (await keyed.post(DIRECT + VERSION, json=body)).status_code == 200
    other = await keyed.post(DIRECT + VERSION, json=FLAT | {"model": "gpt-realtime-mini"})
    assert (other.status_code, other.json()["error"]["param"]) == (400, "model")


async def test_unified_route_needs_model_in_body(keyed: httpx.AsyncClient) -> None:
    answer = await keyed.post(UNIFIED + VERSION, json={"voice": "alloy"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "missing_required_parameter")


@pytest.mark.parametrize("path", [DIRECT, UNIFIED, PROJECT])
@pytest.mark.parametrize("query", ["", "?api-version=", "?api-version=2025-08-28"])
async def test_bad_api_version_is_refused(keyed: httpx.AsyncClient, path: str, query: str) -> None:
    answer = await keyed.post(path + query, json=FLAT, headers=SECOND_KEY)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "API version not supported")


@pytest.mark.parametrize("path", [DIRECT, UNIFIED, PROJECT])
async def test_flat_route_refuses_nested_body(keyed: httpx.AsyncClient, path: str) -> None:
    answer = await keyed.post(path + VERSION, json=NESTED, headers=SECOND_KEY)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "session")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", []),
        ("modalities", ["video"]),
        ("voice", "somebody"),
        ("voice", "en-US-Ava"),
        ("temperature", 3),
        ("input_audio_format", "mp3"),
    ],
)
async def test_value_out_of_range_is_named(keyed: httpx.AsyncClient, field: str, value: object) -> None:
    answer = await keyed.post(UNIFIED + VERSION, json=FLAT | {field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(field)


@pytest.mark.parametrize("voice", ["alloy", "marin", "en-US-GuyNeural", "de-DE-Seraphina:DragonHDLatestNeural"])
async def test_openai_and_azure_voices_are_taken(keyed: httpx.AsyncClient, voice: str) -> None:
    assert (await keyed.post(UNIFIED + VERSION, json=FLAT | {"voice": voice})).status_code == 200


async def test_missing_deployment_is_404(keyed: httpx.AsyncClient) -> None:
    elsewhere = DIRECT.replace("gpt-realtime", "gpt-9")
    for path, body in [(elsewhere, FLAT | {"model": "gpt-9"}), (UNIFIED, FLAT | {"model": "gpt-9"})]:
        answer = await keyed.post(path + VERSION, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "DeploymentNotFound")


@pytest.mark.parametrize(("path", "body"), [(PROJECT + VERSION, FLAT), (PROJECT_GA, NESTED)])
async def test_project_wants_key_in_both_headers(keyed: httpx.AsyncClient, path: str, body: object) -> None:
    assert (await keyed.post(path, json=body, headers=SECOND_KEY)).status_code == 200
    once = await keyed.post(path, json=body)
    assert (once.status_code, once.json()["statusCode"]) == (401, 401)
    wrong = await keyed.post(path, json=body, headers={"Ocp-Apim-Subscription-Key": "other"})
    assert wrong.status_code == 401
    entra = {"authorization": "Bearer simulated-entra-token"}
    async with httpx.AsyncClient(base_url=keyed.base_url, headers=entra) as client:
        assert (await client.post(path, json=body)).status_code == 200


async def test_missing_project_is_404() -> None:
    config = SimulatorConfig(projects=frozenset({"other"}))
    async with serve(config) as azure, httpx.AsyncClient(base_url=azure.base_url) as client:
        answer = await client.post(PROJECT + VERSION, json=FLAT, headers={"api-key": "simulated-key"} | SECOND_KEY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NotFound")


@pytest.mark.parametrize(
    ("kind", "routes"),
    [
        ("direct", {GA, DIRECT + VERSION}),
        ("unified", {UNIFIED + VERSION}),
        ("project", {PROJECT + VERSION, PROJECT_GA}),
    ],
)
async def test_each_kind_serves_its_own_routes(kind: Kind, routes: set[str]) -> None:
    everything = {
        GA: NESTED,
        PROJECT_GA: NESTED,
        DIRECT + VERSION: FLAT,
        UNIFIED + VERSION: FLAT,
        PROJECT + VERSION: FLAT,
    }
    headers = {"api-key": "simulated-key"} | SECOND_KEY
    config = SimulatorConfig(kinds=frozenset({kind}))
    async with serve(config) as azure, httpx.AsyncClient(base_url=azure.base_url, headers=headers) as client:
        for path, body in everything.items():
            answer = await client.post(path, json=body)
            assert answer.status_code == (200 if path in routes else 404)
            if path not in routes:
                assert answer.json() == {"error": {"code": "404", "message": "Resource not found"}}


async def test_other_method_on_mint_is_404(keyed: httpx.AsyncClient) -> None:
    answer = await keyed.get(UNIFIED + VERSION)
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "Resource not found")
