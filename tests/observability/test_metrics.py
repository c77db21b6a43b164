"""`/metrics` says what was done, number by number."""

import asyncio
import json
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from tests.conftest import StartBroker
from tests.observability.scrape import scrape
from tests.support.resources import run_resources
from tests.support.waiting import eventually
from token_broker import __version__
from token_broker.simulator import RunningSimulator

REQUESTS = "token_broker_token_requests_total"
SECONDS = "token_broker_token_request_duration_seconds_count"
ATTEMPTS = "token_broker_mint_attempts_total"
HTTP = "token_broker_http_requests_total"
# On a busy machine no attempt must fail of itself.
PATIENT = {"token_budget_s": 30, "attempt_timeout_s": 20, "breaker_failures": 100, "retry_attempts": 2}
APPEND = '{"type":"input_audio_buffer.append","audio":"AAAA"}'


async def test_token_requests_are_counted_by_result(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, rate_limit_per_minute=7, **PATIENT)
    for _ in range(3):
        await broker.plan()
    azure.set_faults({"match": "/", "fault": "status", "code": 503})
    for _ in range(2):
        assert (await broker.plan())["degraded"]
    assert (await broker.token({"agent_id": "nobody"})).response.status_code == 404
    assert (await broker.token({"what": 1})).response.status_code == 422
    assert (await broker.token()).response.status_code == 429

    seen = await scrape(broker.client)
    for name in (REQUESTS, SECONDS):
        assert {r: seen.of(name, result=r) for r in ("minted", "degraded", "refused", "failed")} == {
            "minted": 3, "degraded": 2, "refused": 3, "failed": 0,
        }  # fmt: skip
    assert seen.of(ATTEMPTS, resource="default", strategy="ga", outcome="minted") == 3
    assert seen.total(ATTEMPTS, outcome="transient") == 8  # 2 requests, 4 strategies
    assert seen.total(ATTEMPTS) == 11
    assert seen.total("token_broker_mint_attempt_duration_seconds_count") == 11
    assert seen.of("token_broker_mint_http_requests_total", resource="default", strategy="ga") == 3 + 2 * 2
    assert seen.total("token_broker_mint_http_requests_total") == len(
        [request for request in azure.requests if request.method == "POST"]
    )
    issued = "token_broker_credentials_issued_total"
    assert seen.of(issued, resource="default", strategy="ga", holder="browser") == 3
    assert seen.of(issued, resource="", strategy="websocket_proxy", holder="browser") == 2
    assert seen.total(issued) == 5
    by_status = {s: seen.total(HTTP, route="/realtime/token", status=s) for s in ("200", "404", "422", "429")}
    assert by_status == {"200": 5, "404": 1, "422": 1, "429": 1}
    seconds = "token_broker_http_request_duration_seconds_count"
    assert seen.of(seconds, method="POST", route="/realtime/token", status_class="2xx") == 5
    assert seen.of(seconds, method="POST", route="/realtime/token", status_class="4xx") == 3
    slo = (await broker.client.get("/status")).json()["slo"]
    assert (slo["requests"], slo["usable_plans"], slo["degraded_plans"], slo["ratio"]) == (5, 5, 2, 1.0)


async def test_request_without_its_plan_is_failed(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, token_strategies=("ga",), retry_attempts=1)
    azure.set_faults({"match": "/", "fault": "status", "code": 500})
    assert (await broker.token()).response.status_code == 503
    azure.set_faults()
    await broker.plan()
    seen = await scrape(broker.client)
    assert (seen.of(REQUESTS, result="failed"), seen.of(REQUESTS, result="minted")) == (1, 1)
    assert (await broker.client.get("/status")).json()["slo"]["ratio"] == 0.5


async def test_breakers_are_one_series_a_state(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, breaker_failures=1, retry_attempts=1)
    azure.set_faults(
        {"match": "/openai/v1", "fault": "status", "code": 503},
        {"match": "/openai/deployments", "fault": "status", "code": 404},
        {"match": "/api/projects", "fault": "status", "code": 401},
    )
    assert (await broker.plan())["strategy"] == "unified"
    seen = await scrape(broker.client)
    for strategy, state, capability in (
        ("ga", "open", "unknown"),
        ("direct_deployment", "open", "missing"),
        ("project", "open", "misconfigured"),
        ("unified", "closed", "available"),
    ):
        labels = {"resource": "default", "role": "strategy", "name": strategy}
        assert seen.of("token_broker_breaker_state", **labels, state=state) == 1
        assert seen.total("token_broker_breaker_state", **labels) == 1
        assert seen.of("token_broker_capability", **labels, capability=capability) == 1
        assert seen.total("token_broker_capability", **labels) == 1


async def test_proxied_talk_is_counted(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, max_sessions=50)
    proxy = (await broker.plan())["connections"][-1]
    received: list[str] = []
    here = {"resource": "default"}
    sent = [APPEND] * 5 + ['{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[]}}']
    async with connect(proxy["url"], subprotocols=proxy["protocols"], compression=None, proxy=None) as socket:
        received.append(str(await socket.recv()))
        assert json.loads(received[0])["type"] == "broker.ready"
        running = await scrape(broker.client)
        for event in sent:
            await socket.send(event)

        async def all_relayed() -> bool:
            seen = await scrape(broker.client)
            return seen.of("token_broker_relayed_frames_total", **here, direction="to_azure") == len(sent)

        await eventually(all_relayed)
        await socket.close()
        received += [str(message) async for message in socket]
    assert (running.of("token_broker_active_talks"), running.of("token_broker_open_talks")) == (1, 1)
    assert running.of("token_broker_max_talks") == 50

    with pytest.raises(ConnectionClosedError):
        async with connect(proxy["url"], subprotocols=proxy["protocols"], proxy=None) as again:
            await again.recv()
    assert again.close_code == 4401

    async def over() -> bool:
        return (await scrape(broker.client)).of("token_broker_active_talks") == 0

    await eventually(over)
    seen = await scrape(broker.client)
    assert seen.of("token_broker_open_talks") == 0
    assert (seen.of("token_broker_talks_total"), seen.of("token_broker_talks_ready_total", **here)) == (1, 1)
    assert seen.of("token_broker_talk_duration_seconds_count") == 1
    assert seen.of("token_broker_closes_total", code="1000") == 1
    assert seen.of("token_broker_closes_total", code="4401") == 1
    assert seen.total("token_broker_closes_total") == 2
    assert seen.of("token_broker_relayed_bytes_total", **here, direction="to_azure") == sum(map(len, sent))
    # What was under way when the client left was relayed, and not read.
    assert seen.of("token_broker_relayed_frames_total", **here, direction="to_client") >= len(received)
    assert seen.of("token_broker_upstream_attempts_total", resource="default", name="voice_live") == 1
    assert seen.of("token_broker_upstream_successes_total", resource="default", name="voice_live") == 1


async def test_turns_are_counted_in_the_memory(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    async with asyncio.timeout(10):
        await broker.memory.ready()
    plan = await broker.plan()
    turn = {"session_id": plan["session_id"], "agent_id": "elena", "role": "user", "content": "Hello", "turn_id": "t1"}
    proof = {"Authorization": f"Bearer {plan['session_token']}"}
    for duplicate in (False, True):
        answer = await broker.client.post("/conversation/turn", json=turn, headers=proof)
        assert answer.status_code == 200, answer.text
        assert answer.json()["duplicate"] is duplicate
    seen = await scrape(broker.client)
    assert seen.of("token_broker_memory_stored_turns_total") == 1
    assert seen.of("token_broker_memory_duplicate_turns_total") == 1
    assert seen.of("token_broker_memory_delivered_turns_total", sink="local") == 1
    assert seen.of("token_broker_memory_commits_total") >= 1
    assert seen.of("token_broker_memory_store_up") == 1


async def test_unknown_paths_make_no_series(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    for number in range(20):
        await broker.client.get(f"/nothing/{number}")
        await broker.client.get(f"/config/agent{number}")
        await broker.client.request("PROPFIND", "/healthz")
    seen = await scrape(broker.client)
    assert seen.of(HTTP, method="GET", route="unmatched", status="404") == 20
    assert seen.of(HTTP, method="GET", route="/config/{agent_id}", status="404") == 20
    assert seen.of(HTTP, method="other", route="/healthz", status="405") == 20
    assert not {value for value in seen.label_values(HTTP) if "7" in value}


async def test_metrics_need_the_configured_token(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, metrics_token="metrics-secret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic metrics-secret"}):
        answer = await broker.client.get("/metrics", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["code"] == "metrics_token_needed"
        assert "token_broker_" not in answer.text
    seen = await scrape(broker.client, Authorization="Bearer metrics-secret")
    assert seen.of(HTTP, method="GET", route="/metrics", status="401") == 3


async def test_openmetrics_is_answered_on_request(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    await broker.plan()
    accept = "application/openmetrics-text; version=1.0.0; charset=utf-8, text/plain;q=0.5"
    answer = await broker.client.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in read_openmetrics(answer.text)}  # type: ignore[no-untyped-call]
    assert [s.labels["version"] for s in families["token_broker_build"].samples] == [__version__]
    assert families["token_broker_draining"].samples[0].value == 0
    assert not [name for name in families if name.endswith("_created")]


async def test_expected_series_begin_at_zero(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    seen = await scrape(broker.client)
    first = {
        (REQUESTS, frozenset({("result", "failed")})),
        (ATTEMPTS, frozenset({("resource", "default"), ("strategy", "ga"), ("outcome", "minted")})),
    }
    assert first <= seen.samples.keys()
    assert (await scrape(broker.client)).of("token_broker_closes_total", code="4502") == 0
    assert ("token_broker_closes_total", frozenset({("code", "4502")})) in seen.samples


async def test_metrics_about_azure_name_the_resource(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two", options={"two": {"priority": 2}}) as several:
        broker = several.broker
        proxy = (await broker.plan())["connections"][-1]
        async with connect(proxy["url"], subprotocols=proxy["protocols"], proxy=None) as socket:
            assert json.loads(await socket.recv())["type"] == "broker.ready"
            with several.azures["one"].fault("refuse"), several.azures["one"].fault("cut"):
                while json.loads(await socket.recv())["type"] != "broker.resumed":
                    pass
            await socket.send(APPEND)

            async def is_relayed() -> bool:
                seen = await scrape(broker.client)
                return seen.of("token_broker_relayed_frames_total", resource="two", direction="to_azure") == 1

            await eventually(is_relayed)
        seen = await scrape(broker.client)
    for name, counts in (
        ("token_broker_talks_ready_total", (1, 0)),
        ("token_broker_talks_live_total", (1, 0)),
        ("token_broker_talk_time_to_live_seconds_count", (1, 0)),
        ("token_broker_failed_transcriptions_total", (0, 0)),
    ):
        assert tuple(seen.of(name, resource=each) for each in ("one", "two")) == counts, name
    assert seen.of("token_broker_relayed_frames_total", resource="one", direction="to_azure") == 0
    assert abs(seen.of("token_broker_clock_skew_seconds", resource="one")) < 3
    assert seen.total("token_broker_hedges_total") == 0
    assert seen.of("token_broker_credentials_issued_total", resource="one", strategy="ga", holder="browser") == 1
