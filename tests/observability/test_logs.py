"""Lines carry the ids of what they belong to, and the audit is written before a credential is released."""

import json
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.conftest import StartBroker
from tests.observability.scrape import scrape
from tests.support.broker import environment, plain_client, run_process
from tests.support.offers import OFFER
from tests.support.waiting import eventually
from token_broker.observability import logging as telemetry
from token_broker.observability.logging import fingerprint
from token_broker.simulator import RunningSimulator


def lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def events(log: str, event: str) -> list[dict[str, Any]]:
    return [line for line in lines(log) if line["event"] == event]


async def test_request_lines_have_only_its_ids(azure: RunningSimulator, tmp_path: Path) -> None:
    azure.set_faults({"match": "/", "fault": "status", "code": 503})
    env = environment(tmp_path, azure.base_url, BROKER_BREAKER_FAILURES="100")
    async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
        plans = [
            (await client.post("/realtime/token", json={}, headers={"X-Request-ID": f"mine-{n}"})).json()
            for n in (1, 2)
        ]
        log = process.log
    for plan in plans:
        assert plan["correlation_id"].startswith("mine-")
        failed = [line for line in events(log, "mint_failed") if line["correlation_id"] == plan["correlation_id"]]
        assert {line["session_id"] for line in failed} == {plan["session_id"]}
        assert [line["strategy"] for line in failed] == ["ga", "direct_deployment", "project", "unified"]
        assert all("trace_id" not in line for line in failed)


async def test_talk_lines_have_handshake_id_and_session(azure: RunningSimulator, tmp_path: Path) -> None:
    env = environment(tmp_path, azure.base_url)
    async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
        plan = (await client.post("/realtime/token", json={})).json()
        proxy = plan["connections"][-1]
        offered = {"subprotocols": proxy["protocols"], "proxy": None}
        headers = {"X-Request-ID": "talk-1"}
        async with connect(proxy["url"], additional_headers=headers, **offered) as socket:
            await socket.recv()
        async with connect(proxy["url"], additional_headers={"X-Request-ID": "talk-2"}, **offered) as socket:
            await socket.wait_closed()

        async def both_told() -> bool:
            return bool(events(process.log, "talk_ended") and events(process.log, "talk_refused"))

        await eventually(both_told)
        log = process.log
    (ended,) = events(log, "talk_ended")
    assert (ended["correlation_id"], ended["session_id"]) == ("talk-1", plan["session_id"])
    (refused,) = events(log, "talk_refused")
    assert refused["correlation_id"] == "talk-2"


@pytest.mark.parametrize("level", ["info", "error"])
async def test_audit_ignores_the_log_level(level: str, azure: RunningSimulator, tmp_path: Path) -> None:
    env = environment(tmp_path, azure.base_url, BROKER_LOG_LEVEL=level)
    async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
        plan = (await client.post("/realtime/token", json={"agent_id": "sage", "user_id": "ada"})).json()
        log = process.log  # the answer is here, so the line must be
    (entry,) = events(log, "credential_issued")
    assert entry.pop("timestamp")
    assert entry == {
        "event": "credential_issued",
        "level": "info",
        "correlation_id": plan["correlation_id"],
        "principal": "anonymous",
        "session_id": plan["session_id"],
        "agent_id": "sage",
        "strategy": "ga",
        "holder": "browser",
        "resource": "default",
        "has_token": True,
        "fingerprint": fingerprint(plan["token"]),
        "expires_at": plan["expires_at"].replace("Z", "+00:00"),
    }


async def test_proxy_plan_is_audited_by_session_token(azure: RunningSimulator, tmp_path: Path) -> None:
    azure.set_faults({"match": "/", "fault": "status", "code": 500})
    env = environment(tmp_path, azure.base_url)
    async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
        plan = (await client.post("/realtime/token", json={})).json()
        log = process.log
    (entry,) = events(log, "credential_issued")
    assert (entry["strategy"], entry["has_token"]) == ("websocket_proxy", False)
    assert entry["fingerprint"] == fingerprint(plan["session_token"])


async def test_relayed_calls_token_is_audited_as_brokers(azure: RunningSimulator, tmp_path: Path) -> None:
    env = environment(tmp_path, azure.base_url)
    async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
        plan = (await client.post("/realtime/token", json={})).json()
        headers = {"Authorization": f"Bearer {plan['session_token']}", "Content-Type": "application/sdp"}
        answer = await client.post("/realtime/calls", content=OFFER, headers=headers)
        log = process.log
    entries = events(log, "credential_issued")
    assert [entry["holder"] for entry in entries] == ["browser", "broker"]
    assert entries[1]["session_id"] == plan["session_id"]
    assert entries[1]["correlation_id"] == answer.headers["x-request-id"]
    assert entries[1]["fingerprint"] != entries[0]["fingerprint"]


async def test_unaudited_credential_is_not_released(
    azure: RunningSimulator, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk:
        def info(self, event: str, **fields: Any) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(telemetry, "audit", FullDisk())
    broker = await start_broker(azure)
    answer = await broker.client.post("/realtime/token", json={})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    assert "ek_" not in answer.text
    seen = await scrape(broker.client)
    assert seen.total("token_broker_credentials_issued_total") == 0
    assert seen.of("token_broker_token_requests_total", result="failed") == 1
