"""Traces arrive at a collector over OTLP, as spans of what happened; without one, nothing of OpenTelemetry is there."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from websockets.asyncio.client import connect

from tests.observability.scrape import scrape
from tests.relay.support.broker import Client
from tests.relay.test_whole_talk import say
from tests.simulator.phone import Phone
from tests.simulator.support import silence, speech
from tests.support.broker import environment, make_settings, plain_client, run_broker, run_process
from tests.support.serving import serve_app
from token_broker.simulator import RunningSimulator

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
FAILED = 2


@dataclass
class Collector:
    """What an OTLP collector was sent."""

    url: str = ""
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    raw: bytes = b""

    async def take(self, request: Request) -> Response:
        body = await request.body()
        self.raw += body
        self.requests.append(ExportTraceServiceRequest.FromString(body))
        return Response(b"", media_type="application/x-protobuf")

    @property
    def spans(self) -> list[Span]:
        return [
            span for request in self.requests for r in request.resource_spans for s in r.scope_spans for span in s.spans
        ]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    async with serve_app(Starlette(routes=[Route("/v1/traces", collector.take, methods=["POST"])])) as base_url:
        collector.url = base_url
        yield collector


def attributes(span: Any) -> dict[str, Any]:
    found = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        found[item.key] = getattr(item.value, kind)
    return found


async def test_token_request_span_joins_callers_trace(
    azure: RunningSimulator, collector: Collector, tmp_path: Path
) -> None:
    azure.set_faults({"match": "/openai/v1", "fault": "status", "code": 503})
    env = environment(tmp_path, azure.base_url, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, BROKER_RETRY_ATTEMPTS="2")
    began_ns = time.time_ns()
    async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "shop=1"}
        plan = (await client.post("/realtime/token", json={"agent_id": "marcus"}, headers=headers)).json()
        refused = await client.post("/realtime/token", json={"agent_id": "nobody"})
        log = process.log
    assert plan["strategy"] == "direct_deployment"
    assert f'"trace_id":"{TRACE}"' in log

    request, other = sorted(collector.named("POST /realtime/token"), key=lambda span: span.start_time_unix_nano)
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.trace_state) == (TRACE, PARENT, "shop=1")
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/realtime/token",
        "http.response.status_code": 200,
        "gen_ai.request.model": "gpt-realtime",
        "gen_ai.agent.id": "marcus",
        "gen_ai.conversation.id": plan["session_id"],
        "token_broker.result": "minted",
        "token_broker.strategy": "direct_deployment",
        "token_broker.correlation_id": plan["correlation_id"],
    }
    first, second = sorted(
        collector.named("create_realtime_session gpt-realtime"), key=lambda span: span.start_time_unix_nano
    )
    for attempt, strategy, outcome, status, tries in (
        (first, "ga", "transient", 503, 2),
        (second, "direct_deployment", "minted", 200, 1),
    ):
        seen = attributes(attempt)
        assert (attempt.trace_id, attempt.parent_span_id) == (request.trace_id, request.span_id)
        assert attempt.kind == Span.SPAN_KIND_CLIENT
        assert seen["gen_ai.provider.name"] == "azure.ai.openai"
        assert seen["gen_ai.operation.name"] == "create_realtime_session"
        assert (seen["token_broker.strategy"], seen["token_broker.outcome"]) == (strategy, outcome)
        assert (seen["http.response.status_code"], seen["token_broker.tries"]) == (status, tries)
    assert (first.status.code, attributes(first)["error.type"]) == (FAILED, "transient")
    assert second.status.code != FAILED
    ends = [began_ns, request.start_time_unix_nano, first.start_time_unix_nano, first.end_time_unix_nano]
    ends += [second.start_time_unix_nano, second.end_time_unix_nano, request.end_time_unix_nano, time.time_ns()]
    assert ends == sorted(ends)

    assert other.trace_id.hex() != TRACE
    assert attributes(other)["error.type"] == "unknown_agent"
    assert attributes(other)["token_broker.correlation_id"] == refused.headers["x-request-id"]
    resource = attributes(collector.requests[0].resource_spans[0].resource)
    assert resource["service.name"] == "voice-token-broker"
    for secret in (plan["token"], plan["session_token"], "simulated-key", plan["connections"][-1]["protocols"][1]):
        assert secret.encode() not in collector.raw


async def test_talk_span_is_joined_by_session(azure: RunningSimulator, collector: Collector, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, azure.base_url, otlp_endpoint=collector.url)
    async with run_broker(settings) as broker:
        plan = await broker.plan({"agent_id": "sage"})
        proxy = plan["connections"][-1]
        async with connect(proxy["url"], subprotocols=proxy["protocols"], proxy=None, max_size=None) as socket:
            client = Client(socket, plan["session_id"])
            await client.ready()
            await say(client, speech(1) + silence(1), real_time=False)
            latency = await client.until("broker.latency")
        shown = await scrape(broker.client)
        where = {"transport": "websocket_proxy", "agent": "sage", "resource": "default"}
        assert shown.of("token_broker_turn_latency_seconds_count", **where) == 1
        status = (await broker.client.get("/status")).json()
        assert round(status["relay"]["turn_latency_ms"]["p95"]) == pytest.approx(latency["turn_ms"], abs=1)
    (talk,) = collector.named("invoke_agent sage")
    seen = attributes(talk)
    assert seen["gen_ai.conversation.id"] == plan["session_id"]
    assert (seen["gen_ai.operation.name"], seen["gen_ai.output.type"]) == ("invoke_agent", "speech")
    assert (seen["token_broker.close_code"], seen["token_broker.turns"]) == (1000, 2)
    assert seen["token_broker.turn_latency_p95_ms"] == pytest.approx(latency["turn_ms"], abs=1)
    assert len(seen["token_broker.turn_latencies_ms"].values) == 1
    assert "error.type" not in seen


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("azure_takes_it", [True, False])
async def test_offer_span_has_mint_and_answer_beneath(
    azure: RunningSimulator, collector: Collector, tmp_path: Path, *, azure_takes_it: bool
) -> None:
    phone = Phone(b"")
    if not azure_takes_it:
        azure.set_faults({"match": "/openai/v1/realtime/calls", "fault": "status", "code": 403})
    async with run_broker(make_settings(tmp_path, azure.base_url, otlp_endpoint=collector.url)) as broker:
        plan = await broker.plan({"agent_id": "sage"})
        headers = {
            "authorization": f"Bearer {plan['session_token']}",
            "content-type": "application/sdp",
            "traceparent": f"00-{TRACE}-{PARENT}-01",
        }
        answer = await broker.client.post("/realtime/calls", content=await phone.offer(), headers=headers)
        await phone.hang_up()
    assert answer.status_code == (201 if azure_takes_it else 502)
    (request,) = collector.named("POST /realtime/calls")
    (offer,) = collector.named("offer_call gpt-realtime")
    mint = max(collector.named("create_realtime_session gpt-realtime"), key=lambda span: span.start_time_unix_nano)
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert [span.parent_span_id for span in (mint, offer)] == [request.span_id] * 2
    seen = attributes(request)
    assert (seen["http.route"], seen["http.response.status_code"]) == ("/realtime/calls", answer.status_code)
    assert (seen["gen_ai.conversation.id"], seen["gen_ai.agent.id"]) == (plan["session_id"], "sage")
    assert seen["token_broker.correlation_id"] == answer.headers["x-request-id"]
    problem = None if azure_takes_it else "azure_refused"
    assert [attributes(span).get("error.type") for span in (request, offer)] == [problem] * 2
    assert (request.status.code == FAILED) is (offer.status.code == FAILED) is not azure_takes_it
    ends = [request.start_time_unix_nano, mint.end_time_unix_nano, offer.start_time_unix_nano]
    ends += [offer.end_time_unix_nano, request.end_time_unix_nano]
    assert ends == sorted(ends)


async def test_absent_collector_costs_only_spans(azure: RunningSimulator, tmp_path: Path) -> None:
    async def hang(request: Request) -> Response:
        await asyncio.sleep(30)
        return Response(b"")

    async with serve_app(Starlette(routes=[Route("/v1/traces", hang, methods=["POST"])])) as hanging:
        env = environment(tmp_path, azure.base_url, OTEL_EXPORTER_OTLP_ENDPOINT=hanging, OTEL_BSP_SCHEDULE_DELAY="1")
        async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
            for _ in range(3):
                assert (await client.post("/realtime/token", json={})).status_code == 200
            ended_s = time.monotonic()
        assert process.process.returncode == 0
        assert time.monotonic() - ended_s < 12


@pytest.mark.parametrize("variables", [{}, {"BROKER_OTEL": "off", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}])
async def test_tracing_off_imports_no_opentelemetry(
    variables: dict[str, str], azure: RunningSimulator, tmp_path: Path
) -> None:
    script = (
        "import asyncio, sys\n"
        "from token_broker.settings import load_settings\n"
        "from token_broker.app import create_app\n"
        "async def main():\n"
        "    app = create_app(load_settings())\n"
        "    async with app.router.lifespan_context(app): pass\n"
        "asyncio.run(main())\n"
        "sys.exit(any(name.partition('.')[0] == 'opentelemetry' for name in sys.modules))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, env=environment(tmp_path, azure.base_url, **variables), cwd=tmp_path
    )
    assert await asyncio.wait_for(process.wait(), 30) == 0
