"""Who is told what by `/status` and `/metrics`: principals are for the metrics token's holder alone, and figures are
not for strangers where callers have to sign in.
"""

import base64
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.conftest import StartBroker
from tests.support.broker import RunningBroker
from tests.support.waiting import eventually
from token_broker.settings import Settings, doubts
from token_broker.simulator import RunningSimulator

TOKEN = "metrics-secret-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
WRONG = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": f"Basic {TOKEN}"},
    {"Authorization": "Bearer"},
    {"X-MS-CLIENT-PRINCIPAL": "e30="},
    {"X-Forwarded-For": "127.0.0.1"},
]
SESSION = "0123456789abcdef"
USER = "u-7f3a9c-of-somebody"
SIGNED_IN = {
    "X-MS-CLIENT-PRINCIPAL": base64.b64encode(
        json.dumps({"auth_typ": "aad", "claims": [{"typ": "oid", "val": USER}]}).encode()
    ).decode()
}
ENTRA = {
    "auth": "entra",
    "entra_tenant_id": "11111111-2222-3333-4444-555555555555",
    "entra_audience": "api://voice",
}
SHORT = {"voicelive_configured", "endpoint", "model", "active_sessions", "agents"}
PATHS = ["/status", "/api/v1/voice/status"]


async def talk(broker: RunningBroker, headers: dict[str, str], **named: str) -> None:
    """A proxied talk of one answer, by whoever `headers` name."""
    reply = await broker.client.post("/realtime/token", json={"session_id": SESSION, **named}, headers=headers)
    proxy = reply.json()["connections"][-1]
    protocols = [Subprotocol(name) for name in proxy["protocols"]]
    async with connect(proxy["url"], subprotocols=protocols, proxy=None) as socket:
        await heard(socket, "broker.ready")
        said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
        await socket.send(json.dumps({"type": "conversation.item.create", "item": said}))
        await socket.send(json.dumps({"type": "response.create"}))
        await heard(socket, "response.done")


async def heard(socket: Any, kind: str) -> None:
    async for text in socket:
        if json.loads(text)["type"] == kind:
            return
    raise AssertionError(f"no {kind} came")


async def figures_of_a_talk(broker: RunningBroker) -> bool:
    """Whether the talk's usage has been counted."""
    return bool(broker.relay.snapshot().usage_by_principal)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("auth", [{}, {"auth": "none"}])
async def test_open_status_names_no_principal(
    auth: dict[str, Any], path: str, azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure, **auth)
    await talk(broker, {}, user_id=USER)
    await eventually(lambda: figures_of_a_talk(broker))
    reply = await broker.client.get(path)
    status = reply.json()
    assert status.keys() >= SHORT | {"strategies", "relay", "outbox", "slo"}
    assert status["relay"]["usage"]["responses"] == 1
    assert status["relay"]["usage_by_agent"]["elena"]["responses"] == 1
    assert "usage_by_principal" not in status["relay"]
    for personal in ("anonymous", USER, SESSION):
        assert personal not in reply.text


@pytest.mark.parametrize("auth", [{}, {"auth": "easyauth"}])
async def test_token_shows_usage_by_principal(
    auth: dict[str, Any], azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure, metrics_token=TOKEN, **auth)
    await talk(broker, SIGNED_IN)
    await eventually(lambda: figures_of_a_talk(broker))
    status = (await broker.client.get("/status", headers=BEARER)).json()
    (principal,) = status["relay"]["usage_by_principal"]
    assert principal == (f"easyauth:aad:{USER}" if auth else "anonymous")
    for headers in WRONG:
        reply = await broker.client.get("/status", headers=headers)
        assert reply.status_code == 200
        assert reply.json().keys() == SHORT
        assert USER not in reply.text


@pytest.mark.parametrize("auth", [{"auth": "easyauth"}, ENTRA])
async def test_sign_in_without_token_hides_figures(
    auth: dict[str, Any], azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure, **auth)
    for headers in [*WRONG, BEARER, SIGNED_IN, {"Authorization": "Bearer None"}]:
        for path in PATHS:
            assert (await broker.client.get(path, headers=headers)).json().keys() == SHORT
        refused = await broker.client.get("/metrics", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "metrics_token_needed")
        assert "set BROKER_METRICS_TOKEN" in refused.json()["detail"]
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "token_broker_" not in refused.text


async def test_metrics_name_no_principal_or_session(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, metrics_token=TOKEN, auth="easyauth")
    await talk(broker, SIGNED_IN)
    await eventually(lambda: figures_of_a_talk(broker))
    reply = await broker.client.get("/metrics", headers=BEARER)
    assert 'token_broker_model_responses_total{agent="elena",resource="default"} 1.0' in reply.text
    for personal in (USER, SESSION, "easyauth"):
        assert personal not in reply.text


@pytest.mark.parametrize(
    ("values", "doubted"),
    [
        ({"auth": "easyauth"}, True),
        ({"auth": "entra"}, True),
        ({"auth": "none"}, False),
        ({}, False),
        ({"auth": "easyauth", "metrics_token": TOKEN}, False),
    ],
)
def test_start_logs_that_metrics_are_closed(values: dict[str, Any], doubted: bool) -> None:
    lines = doubts(Settings(_env_file=None, **values))
    assert [line.partition(":")[0] for line in lines] == ["BROKER_METRICS_TOKEN"] * doubted
