"""`POST /realtime/token` as the contract has it: fields, sessions, refusals, the order of connections."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from tests.conftest import StartBroker
from tests.support.agents import write_agents
from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.machine import retry_if_host_busy
from tests.support.plans import assert_usable
from token_broker.security.tokens import LEEWAY_S, Owner, TokenSigner
from token_broker.simulator import RunningSimulator, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROBLEM_MEMBERS = {"type", "title", "status", "code", "detail", "correlation_id"}

AGENT_OF_PAGE = """
default = "ann"
[agents.ann]
name = "Ann"
voices = { ga = "marin", preview = "ava" }
instructions = "You show things."
[[agents.ann.tools]]
type = "function"
name = "show_map"
run = "client"
parameters = { type = "object", properties = {} }
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningSimulator, StartBroker]]:
    """One Azure for this module, and one broker for each choice of settings: starting them would take most of its time.

    With `alone=True` a broker of one's own, for a test that counts.
    """
    async with contextlib.AsyncExitStack() as stack:
        azure = await stack.enter_async_context(serve())
        running: dict[str, RunningBroker] = {}

        async def start(at: RunningSimulator | None, *, alone: bool = False, **settings: Any) -> RunningBroker:
            name = uuid.uuid4().hex if alone else repr((at is None, settings))
            if name not in running:
                made = make_settings(tmp_path_factory.mktemp("broker"), at.base_url if at else None, **settings)
                running[name] = await stack.enter_async_context(run_broker(made))
            return running[name]

        yield azure, start


@pytest.fixture
def azure(kept: tuple[RunningSimulator, StartBroker]) -> RunningSimulator:
    """The module's Azure, healthy, with nothing seen yet."""
    azure, _ = kept
    azure.set_faults()
    azure.simulator.log.clear()
    return azure


@pytest.fixture
def start_broker(kept: tuple[RunningSimulator, StartBroker]) -> StartBroker:
    return kept[1]


@pytest.fixture
def session() -> str:
    """An id of no session yet."""
    return f"session-{uuid.uuid4().hex}"


def assert_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The answer is a whole problem document of that status and code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document.keys() >= PROBLEM_MEMBERS
    assert (document["status"], document["code"]) == (status, code)
    assert document["correlation_id"] == answer.headers["x-request-id"]
    assert answer.headers["cache-control"] == "no-store"
    return document


async def test_plan_without_a_refused_field(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, alone=True)
    refused = {"code": "invalid_value", "message": "Invalid.", "param": "session.audio.input.transcription"}
    with azure.fault("status", "/openai/v1/realtime/client_secrets", code=400, times=1, body={"error": refused}):
        answer = await broker.client.post("/realtime/token", json={"agent_id": "elena"})
    plan = answer.json()
    assert (plan["strategy"], plan["degraded"]) == ("ga", False)
    mints = [seen.body for seen in azure.simulator.log.entries() if seen.path == "/openai/v1/realtime/client_secrets"]
    assert ["transcription" in str(body) for body in mints] == [True, False]
    left_out = broker.relay.snapshot().settings_left_out
    assert left_out == {plan["resource"]: {"elena": {"session.audio.input.transcription": 1}}}


@pytest.mark.parametrize("prefix", ["", "/api/v1/voice"])
async def test_plan_has_every_field_of_the_contract(
    prefix: str, azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure)
    answer = await broker.client.post(f"{prefix}/realtime/token", json={"agent_id": "elena"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    plan = answer.json()
    assert_usable(plan, broker, azure)
    assert plan.keys() == {
        "session_id", "agent_id", "model", "strategy", "degraded", "token", "expires_at", "endpoint", "session_token",
        "connections", "correlation_id", "resource", "outlook", "retry_after_s",
    }  # fmt: skip
    assert (plan["agent_id"], plan["model"], plan["strategy"], plan["degraded"]) == (
        "elena",
        "gpt-realtime",
        "ga",
        False,
    )
    assert plan["correlation_id"] == answer.headers["x-request-id"]
    direct, relay, proxy = plan["connections"]
    assert (plan["resource"], plan["outlook"], plan["retry_after_s"]) == ("default", "good", None)
    assert [connection["resource"] for connection in plan["connections"]] == ["default", None, None]
    common = {"transport", "url", "expires_at", "expires_in_s", "dialect", "voice", "resource"}
    assert direct.keys() == relay.keys() == common | {"token"}
    assert proxy.keys() == common | {"protocols"}
    assert (direct["dialect"], direct["voice"]) == ("ga", "marin")
    assert direct["url"] == f"{azure.base_url}/openai/v1/realtime/calls?webrtcfilter=on"
    assert (relay["dialect"], relay["voice"], relay["expires_in_s"]) == ("ga", "marin", 10_800)
    assert relay["token"] == plan["session_token"]
    assert (proxy["dialect"], proxy["voice"]) == ("preview", "en-US-Ava:DragonHDLatestNeural")
    assert proxy["url"] == f"ws{broker.base_url.removeprefix('http')}/api/v1/voice/voicelive/{plan['session_id']}"
    assert proxy["protocols"][0] == "realtime"
    assert "=" not in proxy["protocols"][1], "a ticket travels as a subprotocol, which takes no padding"
    for connection in plan["connections"]:
        assert connection["expires_at"].endswith("Z")
        at = datetime.fromisoformat(connection["expires_at"])
        assert abs((at - datetime.now(UTC)).total_seconds() - connection["expires_in_s"]) < 3


@pytest.mark.parametrize("body", [b"", b"{}", b"  {}\n", b'{"agent_id": null, "session_id": null, "user_id": null}'])
async def test_every_field_is_optional(body: bytes, azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    answer = await broker.client.post("/realtime/token", content=body)
    assert answer.status_code == 200
    assert answer.json()["agent_id"] == "elena"
    assert len(answer.json()["session_id"]) == 36


@pytest.mark.parametrize(("agent", "ga_voice", "preview_voice", "word"), [
    ("elena", "marin", "en-US-Ava:DragonHDLatestNeural", "business analyst"),
    ("marcus", "cedar", "en-US-GuyNeural", "project manager"),
    ("sage", "marin", "en-US-Ava:DragonHDLatestNeural", "storyteller"),
])  # fmt: skip
async def test_each_agent_has_voice_and_instructions(
    *, agent: str, ga_voice: str, preview_voice: str, word: str, azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure)
    plan = await broker.plan({"agent_id": agent})
    assert [connection["voice"] for connection in plan["connections"]] == [ga_voice, ga_voice, preview_voice]
    asked = next(request for request in azure.requests if request.method == "POST").body
    assert asked["session"]["audio"]["output"]["voice"] == ga_voice
    assert word in asked["session"]["instructions"]


@pytest.mark.parametrize(
    ("modalities", "asked"),
    [(["audio", "text"], ["audio"]), (["text", "audio"], ["audio"]), (["audio"], ["audio"]), (["text"], ["text"])],
)
async def test_ga_is_asked_for_one_modality(
    modalities: list[str], asked: list[str], azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure)
    assert (await broker.plan({"modalities": modalities}))["strategy"] == "ga"
    body = next(request for request in azure.requests if request.method == "POST").body
    assert body["session"]["output_modalities"] == asked


@retry_if_host_busy()
async def test_configured_lifetime_is_asked_for(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, token_ttl_s=300)
    plan = await broker.plan()
    assert 298 <= plan["connections"][0]["expires_in_s"] <= 300
    body = next(request for request in azure.requests if request.method == "POST").body
    assert body["expires_after"] == {"anchor": "created_at", "seconds": 300}


async def test_degraded_plan_names_the_broker(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    azure.set_faults({"match": "/", "fault": "status", "code": 500})
    plan = await broker.plan({"agent_id": "marcus"})
    assert_usable(plan, broker, azure)
    assert (plan["strategy"], plan["degraded"], plan["token"]) == ("websocket_proxy", True, None)
    assert plan["endpoint"] == broker.base_url


async def test_proxy_speaks_ga_on_direct_endpoint(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, endpoint_kind="direct")
    plan = await broker.plan({"agent_id": "marcus"})
    assert (plan["connections"][-1]["dialect"], plan["connections"][-1]["voice"]) == ("ga", "cedar")
    assert set(await broker.strategies()) == {"ga", "direct_deployment", "websocket_proxy"}


async def test_filter_can_be_switched_off(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, webrtc_filter="off")
    assert (await broker.plan())["connections"][0]["url"] == f"{azure.base_url}/openai/v1/realtime/calls"


async def test_page_that_answers_calls_gets_them(
    azure: RunningSimulator, start_broker: StartBroker, tmp_path: Path
) -> None:
    file = write_agents(tmp_path, AGENT_OF_PAGE)
    broker = await start_broker(azure, agents_file=file)
    assert "webrtcfilter" not in (await broker.plan())["connections"][0]["url"]


async def test_direct_websocket_precedes_the_proxy(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, direct_websocket="on")
    plan = await broker.plan()
    assert [connection["transport"] for connection in plan["connections"]] == [
        "webrtc", "webrtc_relay", "websocket", "websocket_proxy",
    ]  # fmt: skip
    direct = plan["connections"][2]
    assert direct["url"] == f"{azure.websocket_url}/openai/v1/realtime?model=gpt-realtime"
    assert direct["protocols"] == ["realtime", f"openai-insecure-api-key.{plan['token']}"]
    assert direct["dialect"] == "ga"


async def test_strategies_follow_configured_order(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, token_strategies=("unified", "ga", "websocket_proxy"))
    plan = await broker.plan()
    assert plan["strategy"] == "unified"
    assert plan["connections"][0]["dialect"] == "preview"


async def test_proxy_in_the_middle_ends_the_chain(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, token_strategies=("ga", "websocket_proxy", "unified"))
    azure.set_faults({"match": "/openai/v1", "fault": "status", "code": 500})
    plan = await broker.plan()
    assert_usable(plan, broker, azure)
    assert plan["degraded"]
    assert {request.path for request in azure.requests if request.method == "POST"} == {
        "/openai/v1/realtime/client_secrets"
    }


async def test_plans_use_the_public_url(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, public_url="https://voice.example.com")
    plan = await broker.plan()
    assert plan["connections"][1]["url"].startswith("https://voice.example.com/api/v1/voice/realtime/calls?")
    assert plan["connections"][2]["url"].startswith("wss://voice.example.com/api/v1/voice/voicelive/")


async def test_503_without_mint_or_proxy(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, token_strategies=("ga", "unified"))
    plan = await broker.plan()
    assert [connection["transport"] for connection in plan["connections"]] == ["webrtc", "webrtc_relay"]
    azure.set_faults({"match": "/", "fault": "status", "code": 500})
    answer = await broker.client.post("/realtime/token", json={})
    assert_problem(answer, 503, "nothing_minted")
    assert int(answer.headers["retry-after"]) > 0
    assert "127.0.0.1" not in answer.text, "a problem tells no internal URL"


async def test_missing_endpoint_is_reported(start_broker: StartBroker) -> None:
    broker = await start_broker(None, key=None, azure_auth="auto")
    answer = await broker.client.post("/realtime/token", json={})
    document = assert_problem(answer, 503, "not_configured")
    assert "AZURE_VOICELIVE_ENDPOINT" in document["detail"]
    assert answer.headers["retry-after"]


# --- what is refused


@pytest.mark.parametrize(
    "body", [b"{", b"agent", b'{"agent_id": }', b"\xff\xfe", b'{"a": NaN}x', b"[" * 5000, b'"\\ud800"']
)
async def test_invalid_json_is_400(body: bytes, azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    assert_problem(await broker.client.post("/realtime/token", content=body), 400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"agent": "elena"}, "agent"),
        ({"agent_id": 7}, "agent_id"),
        ({"agent_id": ""}, "agent_id"),
        ({"session_id": "too-short"}, "session_id"),
        ({"session_id": "x" * 65}, "session_id"),
        ({"session_id": "0123456789abcdef/"}, "session_id"),
        ({"session_id": "0123456789abcdef\n"}, "session_id"),
        ({"modalities": []}, "modalities"),
        ({"modalities": ["audio", "audio"]}, "modalities"),
        ({"modalities": ["video"]}, "modalities.0"),
        ({"modalities": "audio"}, "modalities"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a\u0000b"}, "user_id"),
        ({"user_id": ["me"]}, "user_id"),
        ([], "body"),
        ("elena", "body"),
        (None, "body"),
    ],
)
async def test_wrong_fields_are_422_and_named(
    body: Any, field: str, azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure)
    answer = await broker.client.post("/realtime/token", content=json.dumps(body))
    document = assert_problem(answer, 422, "invalid_request")
    assert [error["field"] for error in document["errors"]] == [field]
    assert field in document["detail"]


async def test_unknown_agent_is_404_and_names_known(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    answer = await broker.client.post("/realtime/token", json={"agent_id": "hal"})
    document = assert_problem(answer, 404, "unknown_agent")
    assert all(name in document["detail"] for name in ("elena", "marcus", "sage"))
    assert "hal" not in document["detail"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_the_limit_is_413(chunked: bool, azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, max_body_bytes=2048)

    async def pieces() -> Any:
        for _ in range(100):
            yield b" " * 100

    content = pieces() if chunked else b" " * 2049
    assert_problem(await broker.client.post("/realtime/token", content=content), 413, "body_too_large")


async def test_body_that_does_not_come_is_408(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, body_timeout_s=0.2)
    host, port = broker.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /realtime/token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_wrong_method_is_405_and_names_right_one(
    method: str, azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure)
    answer = await broker.client.request(method, "/realtime/token")
    assert_problem(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/realtime/token/", "/realtime", "/v2/realtime/token", "/config/hal"])
async def test_unknown_path_is_404(path: str, azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    answer = await broker.client.get(path)
    assert_problem(answer, 404, answer.json()["code"])


async def test_plain_request_id_is_kept(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    plan = await broker.token({}, x_request_id="my-id.1")
    assert plan.plan["correlation_id"] == plan.response.headers["x-request-id"] == "my-id.1"
    odd = await broker.token({}, x_request_id='"><script>')
    assert odd.plan["correlation_id"] == odd.response.headers["x-request-id"]
    assert "<" not in odd.response.headers["x-request-id"]


# --- sessions


async def test_unknown_session_id_begins_a_session(
    azure: RunningSimulator, start_broker: StartBroker, session: str
) -> None:
    broker = await start_broker(azure)
    plan = await broker.plan({"session_id": session})
    assert plan["session_id"] == session
    assert_usable(plan, broker, azure)


async def test_own_token_resumes_the_session(azure: RunningSimulator, start_broker: StartBroker, session: str) -> None:
    broker = await start_broker(azure)
    first = await broker.plan({"session_id": session})
    second = await broker.plan({"session_id": session}, x_session_token=first["session_token"])
    third = await broker.plan({"session_id": session}, x_session_token=second["session_token"])
    epochs = [broker.signer.read_session_token(plan["session_token"]).owner.epoch for plan in (first, second, third)]
    assert epochs == sorted(set(epochs))
    assert {plan["session_id"] for plan in (first, second, third)} == {session}


async def test_known_session_without_token_is_403(
    azure: RunningSimulator, start_broker: StartBroker, session: str
) -> None:
    broker = await start_broker(azure)
    await broker.plan({"session_id": session})
    answer = (await broker.token({"session_id": session})).response
    document = assert_problem(answer, 403, "foreign_session")
    assert "X-Session-Token" in document["detail"]


@pytest.mark.parametrize("token", ["", "garbage", "a.b.c", "x" * 5000, "\u00e9"])
async def test_session_with_wrong_token_is_403(
    token: str, azure: RunningSimulator, start_broker: StartBroker, session: str
) -> None:
    broker = await start_broker(azure)
    await broker.plan({"session_id": session})
    answer = await broker.client.post(
        "/realtime/token", json={"session_id": session}, headers={b"X-Session-Token": token.encode("latin-1")}
    )
    assert_problem(answer, 403, "foreign_session")


async def test_another_sessions_token_opens_nothing(
    azure: RunningSimulator, start_broker: StartBroker, session: str
) -> None:
    broker = await start_broker(azure)
    mine = await broker.plan({"session_id": session})
    await broker.plan({"session_id": "fedcba9876543210"})
    for session_id in ("fedcba9876543210", "unknown-until-now"):
        answer = (await broker.token({"session_id": session_id}, x_session_token=mine["session_token"])).response
        assert_problem(answer, 403, "foreign_session")


async def test_ticket_is_no_session_token(azure: RunningSimulator, start_broker: StartBroker, session: str) -> None:
    broker = await start_broker(azure)
    plan = await broker.plan({"session_id": session})
    ticket = plan["connections"][-1]["protocols"][1].removeprefix("ticket.")
    assert_problem(
        (await broker.token({"session_id": session}, x_session_token=ticket)).response, 403, "foreign_session"
    )


@pytest.mark.parametrize(
    ("past_expiry_s", "status"),
    [(0, 200), (24 * 3600 - 30, 200), (24 * 3600 + LEEWAY_S + 30, 403)],
)
async def test_token_resumes_24_h_past_its_expiry(
    past_expiry_s: int, status: int, azure: RunningSimulator, start_broker: StartBroker, session: str
) -> None:
    broker = await start_broker(azure, signing_keys=("k" * 32,))
    earlier = TokenSigner([broker.settings.signing_keys[0]], clock=lambda: time.time() - past_expiry_s - 100)
    token = earlier.session_token(Owner(session, "anonymous", 5), ttl_s=100)
    answer = (await broker.token({"session_id": session}, x_session_token=token)).response
    assert answer.status_code == status


async def test_session_survives_a_restart(azure: RunningSimulator, start_broker: StartBroker, session: str) -> None:
    before = await start_broker(azure, signing_keys=("k" * 32,))
    after = await start_broker(azure, signing_keys=("n" * 32, "k" * 32))
    first = await before.plan({"session_id": session, "user_id": "ada"})
    second = await after.plan({"session_id": session}, x_session_token=first["session_token"])
    claims = [
        broker.signer.read_session_token(plan["session_token"]) for broker, plan in ((before, first), (after, second))
    ]
    assert claims[0].owner.epoch < claims[1].owner.epoch
    assert {claim.owner.user_id for claim in claims} == {"ada"}


async def test_user_id_is_a_label_without_auth(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    plan = await broker.plan({"user_id": "Ada Lövelace"})
    claims = broker.signer.read_session_token(plan["session_token"])
    assert (claims.owner.principal, claims.owner.user_id) == ("anonymous", "Ada Lövelace")


async def test_credentials_are_audited_by_fingerprint(azure: RunningSimulator, start_broker: StartBroker) -> None:
    with capture_logs() as logs:
        broker = await start_broker(azure)
        plan = await broker.plan({"agent_id": "marcus"})
    entry = next(entry for entry in logs if entry["event"] == "credential_issued")
    assert (entry["agent_id"], entry["strategy"], entry["has_token"]) == ("marcus", "ga", True)
    assert entry["correlation_id"] == plan["correlation_id"]
    assert plan["token"] not in str(entry)
    assert plan["session_token"] not in str(entry)
    assert len(entry["fingerprint"]) == 12


# --- what the broker says of itself


@pytest.mark.parametrize("prefix", ["", "/api/v1/voice"])
async def test_status_has_the_chains_health(prefix: str, azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, alone=True)
    await broker.plan()
    status = (await broker.client.get(f"{prefix}/status")).json()
    assert (status["voicelive_configured"], status["endpoint"]) == (True, azure.base_url)
    assert (status["model"], status["active_sessions"]) == ("gpt-realtime", 0)
    assert status["agents"]["elena"]["voice"] == "en-US-Ava:DragonHDLatestNeural"
    ga = status["strategies"][0]
    assert (ga["name"], ga["breaker"], ga["capability"]) == ("ga", "closed", "available")
    assert (ga["last_outcome"], ga["attempts"], ga["successes"]) == ("minted", 1, 1)
    assert ga["latency_ms"]["p50"] > 0
    assert ga["resource"] == "default"
    assert status["slo"] == {
        "aim": 0.9999,
        "requests": 1,
        "usable_plans": 1,
        "degraded_plans": 0,
        "ratio": 1.0,
        "plans": {"requests": 1, "usable": 1, "ratio": 1.0},
        "talks": {"asked": 0, "live": 0, "left": 0, "ratio": None, "time_to_live_ms": {"p50": None, "p95": None}},
    }
    (resource,) = status["resources"]
    assert (resource["name"], resource["enabled"], resource["health"]) == ("default", True, "good")
    assert abs(status["clock_skew_s"]) <= 2


async def test_full_status_needs_the_metrics_token(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, metrics_token="metrics-token")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic metrics-token"}):
        status = (await broker.client.get("/status", headers=headers)).json()
        assert "strategies" not in status
        assert status["voicelive_configured"]
    full = (await broker.client.get("/status", headers={"Authorization": "Bearer metrics-token"})).json()
    assert full["strategies"]


@pytest.mark.parametrize("prefix", ["", "/api/v1/voice"])
async def test_agent_config_has_its_four_fields(
    prefix: str, azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure)
    assert (await broker.client.get(f"{prefix}/config/marcus")).json() == {
        "agent_id": "marcus",
        "voice_name": "en-US-GuyNeural",
        "model": "gpt-realtime",
        "endpoint_configured": True,
    }
    assert_problem(await broker.client.get(f"{prefix}/config/hal"), 404, "unknown_agent")


async def test_health_and_readiness_answer(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    for path in ("/healthz", "/readyz"):
        answer = await broker.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["x-request-id"]


async def test_plan_urls_use_the_requested_host(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    plan = await broker.plan(None, host="localhost:8443")
    hosts = {urlsplit(connection["url"]).netloc for connection in plan["connections"][1:]}
    assert hosts == {"localhost:8443"}
