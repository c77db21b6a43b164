"""Secrets planted as key, Entra token and identity header appear in no answer, log, metric or command output.

The broker runs as a process. Each fault is set at all strategies, each route gets good and bad requests, and all output
is searched.
"""

import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.broker import environment, plain_client, run_command, run_process
from tests.support.entra import run_identity_endpoint
from tests.support.offers import OFFER
from tests.support.plans import MINT_PATHS
from tests.support.serving import serve_app
from tests.support.waiting import eventually
from token_broker.simulator import RunningSimulator

KEY = "canary1key2f3a91d0c4b5e6f7a8b9c0d1e2f3a4"  # as Azure's: letters and figures, so that a code could be one
ENTRA = "canaryEntraToken5b20cc-opaque.and_no_jwt"
IDENTITY_HEADER = "canaryIdentityHeader77aa01"
METRICS_TOKEN = "canaryMetricsToken0192837465"
SIGNING_KEY = "canarySigningKey-0123456789abcdef-0123456789abcdef"
CANARIES = (KEY, ENTRA, IDENTITY_HEADER, METRICS_TOKEN, SIGNING_KEY)

FAULTS: list[dict[str, Any]] = [
    *({"fault": "status", "code": code} for code in (400, 401, 403, 404, 408, 429, 500, 502, 503, 504, 204)),
    {"fault": "hang"},
    {"fault": "slow", "seconds": 30, "part": "headers"},
    {"fault": "slow", "seconds": 30, "part": "body"},
    *({"fault": "reset", "at": at} for at in ("start", "headers", "body")),
    {"fault": "redirect", "location": "http://127.0.0.1:1/elsewhere"},
    *({"fault": "malformed_json", "form": form} for form in ("truncated", "html", "text", "empty")),
    *({"fault": "missing_value", "form": form} for form in ("missing", "null", "empty", "blank", "number", "object")),
    {"fault": "expired"},
    {"fault": "expires_at", "value": "tomorrow"},
    {"fault": "huge_body"},
]

SDP = {"Content-Type": "application/sdp"}

# Requests to every route there is or is to be, without proof of a session; what is not there answers 404, which must
# not leak either.
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/realtime/token", {"json": {}}),
    ("POST", "/api/v1/voice/realtime/token", {"json": {"agent_id": "sage", "user_id": "somebody"}}),
    ("POST", "/realtime/token", {"content": b"{"}),
    ("POST", "/realtime/token", {"json": {"agent_id": "nobody"}}),
    ("POST", "/realtime/token", {"json": {"what": 1, "session_id": "short"}}),
    ("POST", "/realtime/token", {"content": b"x" * 100_000}),
    ("POST", "/realtime/token", {"json": {}, "headers": {"X-Session-Token": "e30.e30.e30"}}),
    ("GET", "/realtime/token", {}),
    ("GET", "/status", {}),
    ("GET", "/status", {"headers": {"Authorization": f"Bearer {METRICS_TOKEN}"}}),
    ("GET", "/api/v1/voice/status", {"headers": {"Authorization": "Bearer wrong"}}),
    ("GET", "/config/elena", {}),
    ("GET", "/config/nobody", {}),
    ("GET", "/healthz", {}),
    ("GET", "/readyz", {}),
    ("GET", "/metrics", {}),
    ("GET", "/metrics", {"headers": {"Authorization": f"Bearer {METRICS_TOKEN}"}}),
    ("GET", "/openapi.json", {}),
    ("GET", "/", {}),
    ("POST", "/realtime/calls?session_id=0123456789abcdef", {"content": b"v=0", "headers": SDP}),
    ("DELETE", "/realtime/calls/rtc_x", {}),
    ("POST", "/conversation/turn", {"json": {"session_id": "0123456789abcdef"}}),
    ("POST", "/memory/enrich", {"json": {"text": "x"}}),
    ("GET", "/api/v1/memory/sessions/0123456789abcdef/turns", {}),
    ("POST", "/v1/realtime/client_secrets", {"json": {"session": {"type": "realtime"}}}),
    ("GET", "/api/v1/voice/voicelive/0123456789abcdef", {}),
    ("GET", "/nothing/here", {}),
]


def test_canaries_are_detected() -> None:
    assert [canary for canary in CANARIES if canary in f"a {KEY} and {ENTRA}"] == [KEY, ENTRA]


@pytest.mark.parametrize("auth", ["key", "entra"])
async def test_no_canary_leaks_from_any_route(auth: str, azure: RunningSimulator, tmp_path: Path) -> None:
    async with run_identity_endpoint() as identity:
        identity.token, identity.header = ENTRA, IDENTITY_HEADER
        env = _environment(tmp_path, azure.base_url, auth) | identity.variables
        async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
            seen = [dump async for dump in _drive(client, azure)]
            identity.status = 400
            seen += [dump async for dump in _ask(client)]
        seen.append(process.log)
    assert len(seen) > len(FAULTS) + len(REQUESTS)
    assert "mint_failed" in process.log, "there was nothing to look through"
    for text in seen:
        _assert_clean(text)


@pytest.mark.parametrize("auth", ["key", "entra"])
async def test_no_canary_leaks_from_echoing_mints(auth: str, tmp_path: Path) -> None:
    """A gateway may repeat headers in its errors; some even in an error's code, or as the token itself."""
    routes = [Route("/{path:path}", _echoing(), methods=["POST"])]
    async with run_identity_endpoint() as identity, serve_app(Starlette(routes=routes)) as gateway:
        identity.token, identity.header = ENTRA, IDENTITY_HEADER
        env = _environment(tmp_path, gateway, auth) | identity.variables | {"BROKER_MISCONFIGURED_RETRY_S": "0.001"}
        async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
            for _ in range(2 * _ECHOES):
                for method, path in (("POST", "/realtime/token"), ("GET", "/status")):
                    answer = await client.request(method, path, headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
                    assert answer.status_code == 200
                    _assert_clean(_dump(answer))
        _assert_clean(process.log)
        finished = await run_command("token", "--json", env=env, cwd=tmp_path)
        assert finished.code == 0
        _assert_clean(finished.out + finished.err)


@pytest.mark.parametrize("auth", ["key", "entra"])
async def test_no_canary_leaks_from_echoing_hangups(auth: str, tmp_path: Path) -> None:
    async def minted(_: Request) -> Response:
        return JSONResponse({"value": "ek_x", "expires_at": int(time.time()) + 60})

    async def taken(_: Request) -> Response:
        return Response(OFFER, 201, {"Location": "/openai/v1/realtime/calls/rtc_1"}, media_type="application/sdp")

    routes = [
        Route("/openai/v1/realtime/client_secrets", minted, methods=["POST"]),
        Route("/openai/v1/realtime/calls", taken, methods=["POST"]),
        Route("/openai/v1/realtime/calls/{call_id}/hangup", _echoing(), methods=["POST"]),
    ]
    async with run_identity_endpoint() as identity, serve_app(Starlette(routes=routes)) as gateway:
        identity.token, identity.header = ENTRA, IDENTITY_HEADER
        env = _environment(tmp_path, gateway, auth) | identity.variables | {"BROKER_TOKEN_BUDGET_S": "5"}
        async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
            plan = (await client.post("/realtime/token", json={})).json()
            proof = {"Authorization": f"Bearer {plan['session_token']}"}
            path = f"/realtime/calls?session_id={plan['session_id']}"

            async def placed() -> str:  # the first credential may take its time
                answer = await client.post(path, content=OFFER, headers=SDP | proof)
                return _dump(answer) if answer.status_code == 201 else ""

            answer = await eventually(placed)
            cut = await run_command("block", "--session", plan["session_id"], env=env, cwd=tmp_path)
            assert cut.code == 0

            async def blocked() -> bool:
                return "call_ended" in process.log

            await eventually(blocked, within_s=30)
        assert process.log.count("call_not_ended") == _REFUSALS_FIRST
        for text in (answer, cut.out + cut.err, process.log):
            _assert_clean(text)


@pytest.mark.parametrize(
    ("auth", "fault", "arguments"),
    [
        ("key", None, ("token", "--json")),
        ("entra", None, ("token",)),
        ("key", {"fault": "status", "code": 401}, ("token",)),
        ("entra", {"fault": "reset"}, ("token", "--json")),
    ],
)
async def test_no_canary_leaks_from_token_command(
    *,
    auth: str,
    fault: dict[str, Any] | None,
    arguments: tuple[str, ...],
    azure: RunningSimulator,
    tmp_path: Path,
) -> None:
    if fault:
        azure.set_faults({"match": "/", **fault})
    async with run_identity_endpoint() as identity:
        identity.token, identity.header = ENTRA, IDENTITY_HEADER
        env = _environment(tmp_path, azure.base_url, auth) | identity.variables
        finished = await run_command(*arguments, env=env, cwd=tmp_path)
    assert finished.code == 0
    _assert_clean(finished.out + finished.err)


async def test_no_canary_leaks_from_refused_start(tmp_path: Path) -> None:
    wrong = {
        "AZURE_VOICELIVE_KEY": f"{KEY} {KEY}",
        "BROKER_SIGNING_KEY": SIGNING_KEY[:31],
        "BROKER_DATABASE_URL": f"mysql://user:{KEY}@host/db",
        "AZURE_VOICELIVE_ENDPOINT": f"https://user:{KEY}@x.openai.azure.com",
        "BROKER_METRICS_TOKEN": METRICS_TOKEN,
    }
    finished = await run_command("serve", env=environment(tmp_path, None, **wrong), cwd=tmp_path)
    assert finished.code == 2
    _assert_clean(finished.out + finished.err)
    assert SIGNING_KEY[:31] not in finished.err


def _environment(directory: Path, endpoint: str, auth: str) -> dict[str, str]:
    return environment(
        directory,
        endpoint,
        AZURE_VOICELIVE_AUTH=auth,
        AZURE_VOICELIVE_KEY=KEY,
        BROKER_SIGNING_KEY=SIGNING_KEY,
        BROKER_METRICS_TOKEN=METRICS_TOKEN,
        BROKER_TOKEN_BUDGET_S="0.5",
        BROKER_MISCONFIGURED_RETRY_S="0.001",
        BROKER_MISSING_RETRY_S="0.001",
        BROKER_BREAKER_OPEN_S="0.001",
        BROKER_LOG_LEVEL="debug",
    )


async def _drive(client: httpx.AsyncClient, azure: RunningSimulator) -> AsyncIterator[str]:
    """Every fault at all strategies, then at one with the rest as they are; then every request."""
    for fault in FAULTS:
        azure.set_faults({"match": "/", **fault})
        answer = await client.post("/realtime/token", json={})
        assert answer.status_code == 200
        yield _dump(answer)
    for match in MINT_PATHS.values():
        azure.set_faults({"match": match, "fault": "status", "code": 401})
        yield _dump(await client.post("/realtime/token", json={}))
    azure.set_faults()
    async for dump in _ask(client):
        yield dump


async def _ask(client: httpx.AsyncClient) -> AsyncIterator[str]:
    for method, path, options in REQUESTS:
        yield _dump(await client.request(method, path, **options))
    async for dump in _use(client):
        yield dump


async def _use(client: httpx.AsyncClient) -> AsyncIterator[str]:
    """The routes that want a session's token, asked with one."""
    plan = (await client.post("/realtime/token", json={})).json()
    session, proof = plan["session_id"], {"Authorization": f"Bearer {plan['session_token']}"}
    turn = {"session_id": session, "agent_id": "elena", "role": "user", "content": "hello"}
    turns = f"/api/v1/memory/sessions/{session}/turns"
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/conversation/turn", {"json": turn}),
        ("POST", "/memory/enrich", {"json": {"text": "hello", "session_id": session, "speaker": "user"}}),
        ("GET", turns, {}),
        ("POST", f"/realtime/calls?session_id={session}", {"content": "v=0\r\n", "headers": SDP}),
        ("DELETE", "/realtime/calls/rtc_x", {}),
        ("DELETE", turns, {}),
        ("GET", "/docs", {}),
        ("GET", "/client/voice-session.js", {}),
    ]
    for method, path, options in asked:
        headers = {**options.get("headers", {}), **proof}
        yield _dump(await client.request(method, path, **{**options, "headers": headers}))


def _dump(answer: httpx.Response) -> str:
    """Status line, headers and body as one text."""
    return "\n".join([str(answer.status_code), *(f"{k}: {v}" for k, v in answer.headers.items()), answer.text])


def _assert_clean(text: str) -> None:
    for canary in CANARIES:
        for form in _forms(canary):
            assert form not in text, f"{canary[:10]}… came out:\n{text[max(0, text.index(form) - 200) :][:500]}"


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is, and as JSON, a repr or a log might mangle it."""
    yield secret
    yield secret[::-1]
    yield re.escape(secret)
    yield json.dumps(secret)[1:-1]
    yield secret[:20]


_ECHOES = 7
_REFUSALS_FIRST = 3


def _echoing() -> Callable[[Request], Awaitable[Response]]:
    """Answers in turn with each place where a gateway might repeat the credential."""
    turn = itertools.cycle(range(_ECHOES))

    async def echo(request: Request) -> Response:
        secret = request.headers.get("api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        fine = {"expires_at": int(time.time()) + 60}
        answers: list[Response] = [
            JSONResponse({"error": {"code": secret, "message": f"bad key {secret}"}}, 401),
            JSONResponse({"error": {"code": "500", "message": secret}}, 500, {"apim-request-id": secret}),
            JSONResponse({"statusCode": 403, "message": secret, "code": secret}, 403),
            JSONResponse({"value": secret, **fine}),
            JSONResponse({"value": f"ek_{secret}", **fine}),
            Response(f"<html>{dict(request.headers)}</html>", 502),
            JSONResponse({"value": "ek_x", "expires_at": secret}),
        ]
        return answers[next(turn)]

    return echo
