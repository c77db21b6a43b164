"""What pages report of their talks is counted, and nothing else of it is believed."""

from typing import Any

import httpx
import pytest

from tests.conftest import StartBroker
from tests.observability.scrape import scrape
from tests.support.broker import RunningBroker
from token_broker.simulator import RunningSimulator

PATH = "/api/v1/voice/realtime/report"


async def report(broker: RunningBroker, plan: dict[str, Any], path: str = PATH, **fields: Any) -> httpx.Response:
    body = {"session_id": plan["session_id"], "transport": "webrtc"} | fields
    return await broker.client.post(path, json=body, headers={"X-Session-Token": plan["session_token"]})


async def test_reports_are_counted(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    plan = await broker.plan()
    failures = [{"transport": "webrtc", "reason": "ice_failed"}, {"transport": "webrtc", "reason": "newer than I"}]
    first = await report(
        broker,
        plan,
        live_after_ms=840.5,
        turns=[{"turn_ms": 620}, {"turn_ms": 480}],
        rtc={"rtt_ms": 38, "jitter_ms": 4, "lost": 3},
        failures=failures,
    )
    second = await report(broker, plan, "/realtime/report", transport="websocket_proxy", rtc={"rtt_ms": None})
    assert [(answer.status_code, answer.content) for answer in (first, second)] == [(204, b"")] * 2
    seen = await scrape(broker.client)
    by_transport = {"transport": "webrtc"}
    for name, count, total in (
        ("time_to_live", 1, 0.8405),
        ("turn_latency", 2, 1.1),
        ("round_trip", 1, 0.038),
        ("jitter", 1, 0.004),
    ):
        assert seen.of(f"token_broker_reported_{name}_seconds_count", **by_transport) == count
        assert seen.of(f"token_broker_reported_{name}_seconds_sum", **by_transport) == pytest.approx(total)
        assert seen.of(f"token_broker_reported_{name}_seconds_count", transport="websocket_proxy") == 0
    assert seen.of("token_broker_reported_packets_lost_total", **by_transport) == 3
    failed = "token_broker_reported_failures_total"
    assert [seen.of(failed, **by_transport, reason=reason) for reason in ("ice_failed", "other")] == [1, 1]
    assert seen.total(failed) == 2


async def test_absurd_reports_are_refused(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    plan = await broker.plan()
    for absurd in (
        {"transport": "carrier_pigeon"},
        {"live_after_ms": -1},
        {"live_after_ms": "840"},
        {"turns": [{"turn_ms": 3_600_000}]},
        {"turns": [{"turn_ms": 1}] * 101},
        {"rtc": {"rtt_ms": 1e300}},
        {"rtc": {"lost": 1.5}},
        {"failures": [{"transport": "mine", "reason": "refused"}]},
        {"failures": [{"transport": "webrtc", "reason": 7}]},
        {"more": 1},
    ):
        answer = await report(broker, plan, **absurd)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), absurd
    assert (await report(broker, plan, failures=["x" * 16_384])).status_code == 413
    assert (await report(broker, plan, session_id="somebody-elses-1")).json()["code"] == "foreign_session"
    assert (await report(broker, plan | {"session_token": "x"})).status_code == 401
    head = {"X-Session-Token": plan["session_token"], "Content-Type": "application/json"}
    assert (await broker.client.post(PATH, content=b'{"turns": NaN', headers=head)).status_code == 400
    seen = await scrape(broker.client)
    assert seen.total("token_broker_reported_turn_latency_seconds_count") == 0


async def test_reports_have_the_rate_of_turns(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, turns_per_minute=2)
    plan = await broker.plan()
    answers = [await report(broker, plan) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [204, 204, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0
