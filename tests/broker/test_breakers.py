"""What the broker remembers of Azure: breakers, missing routes and wrong credentials."""

import asyncio
import dataclasses
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.conftest import StartBroker
from tests.relay.support.broker import FixedRecall
from tests.support.broker import RunningBroker
from tests.support.machine import retry_if_host_busy
from tests.support.plans import MINT_PATHS, assert_usable
from tests.support.waiting import eventually
from token_broker.security.tokens import Owner
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve


def mints(azure: RunningSimulator) -> list[str]:
    return [request.path for request in azure.requests if request.method == "POST"]


async def breakers_become(state: str, broker: RunningBroker, names: Collection[str] = MINT_PATHS.keys()) -> None:
    async def are() -> bool:
        shown = await broker.strategies()
        return {shown[name]["breaker"] for name in names} == {state}

    await eventually(are)


async def test_open_breakers_ask_azure_nothing(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, breaker_failures=1, breaker_open_s=60)
    azure.set_faults({"match": "/", "fault": "status", "code": 503})
    await broker.plan()
    await breakers_become("open", broker)
    azure.simulator.log.clear()
    for _ in range(5):
        plan = await broker.plan()
        assert_usable(plan, broker, azure)
        assert plan["degraded"]
    assert mints(azure) == []


@retry_if_host_busy()
async def test_open_breakers_skip_a_slow_recall(azure: RunningSimulator, start_broker: StartBroker) -> None:
    class SlowRecall(FixedRecall):
        async def block(self, owner: Owner) -> str:
            await asyncio.sleep(2)
            return ""

    broker = await start_broker(azure, breaker_failures=1, breaker_open_s=60)
    azure.set_faults({"match": "/", "fault": "status", "code": 503})
    await broker.plan()
    broker.state["minting"] = dataclasses.replace(broker.state["minting"], recall=SlowRecall())
    answer = await broker.token()
    assert answer.plan["degraded"]
    assert answer.took_s < 1


async def test_failing_recall_leaves_the_proxy(azure: RunningSimulator, start_broker: StartBroker) -> None:
    class BrokenRecall(FixedRecall):
        async def block(self, owner: Owner) -> str:
            raise RuntimeError("broken")

    broker = await start_broker(azure)
    broker.state["minting"] = dataclasses.replace(broker.state["minting"], recall=BrokenRecall())
    answer = await broker.token()
    assert_usable(answer.plan, broker, azure)


async def test_recovery_costs_one_probe(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, breaker_failures=1, breaker_open_s=0.3, token_budget_s=20, attempt_timeout_s=10)
    azure.set_faults({"match": "/", "fault": "status", "code": 503})
    assert (await broker.plan())["degraded"]
    await breakers_become("half_open", broker)
    azure.set_faults({"match": "/", "fault": "slow", "seconds": 1.5})
    azure.simulator.log.clear()
    plans = await broker.burst(60)
    assert mints(azure) == [MINT_PATHS["ga"]]
    assert sorted(plan["strategy"] for plan in plans) == ["ga", *["websocket_proxy"] * 59]
    azure.set_faults()
    assert (await broker.plan())["strategy"] == "ga"


@retry_if_host_busy()  # five plans have to take less time than the breaker stays open
async def test_failed_probe_keeps_breaker_open(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(
        azure,
        token_strategies=("ga", "websocket_proxy"),
        breaker_failures=3,
        breaker_open_s=0.3,
        retry_attempts=1,
    )
    azure.set_faults({"match": "/", "fault": "status", "code": 503})
    for _ in range(3):
        await broker.plan()
    assert (await broker.strategies())["ga"]["breaker"] == "open"
    await breakers_become("half_open", broker, {"ga"})
    azure.simulator.log.clear()
    for _ in range(5):
        assert (await broker.plan())["degraded"]
    assert len(mints(azure)) == 1
    assert (await broker.strategies())["ga"]["breaker"] == "open"


@pytest.mark.parametrize("faulty", list(MINT_PATHS))
async def test_missing_route_is_asked_once(faulty: str, azure: RunningSimulator, start_broker: StartBroker) -> None:
    others = [name for name in MINT_PATHS if name != faulty]
    broker = await start_broker(azure, token_strategies=(faulty, *others, "websocket_proxy"))
    with azure.fault("status", MINT_PATHS[faulty], code=404):
        plans = [await broker.plan() for _ in range(30)]
    assert {plan["strategy"] for plan in plans} == {others[0]}
    assert len([path for path in mints(azure) if path.startswith(MINT_PATHS[faulty])]) == 1
    shown = (await broker.strategies())[faulty]
    assert (shown["capability"], shown["breaker"], shown["attempts"]) == ("missing", "open", 1)
    assert 0 < shown["retry_in_s"] <= 15  # then 30 s, 60 s, and so on up to BROKER_MISSING_RETRY_S


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "is the key this resource's own?"), (403, "AZURE_VOICELIVE_AUTH=entra")]
)
async def test_refused_credential_is_reported(
    status: int, advice: str, azure: RunningSimulator, start_broker: StartBroker
) -> None:
    with capture_logs() as logs:
        broker = await start_broker(azure)
        with azure.fault("status", code=status):
            plans = [await broker.plan() for _ in range(20)]
    assert {plan["strategy"] for plan in plans} == {"websocket_proxy"}
    assert len(mints(azure)) == 4, "a wrong credential is not tried again with every request"
    loud = [entry for entry in logs if entry["event"] == "mint_failed"]
    assert [(entry["log_level"], entry["strategy"], entry["status"]) for entry in loud] == [
        ("error", name, status) for name in MINT_PATHS
    ]
    for entry in loud:
        assert advice in entry["why"]
        assert "token-broker doctor" in entry["do"]
    shown = await broker.strategies()
    for name in MINT_PATHS:
        assert shown[name]["capability"] == "misconfigured"
        assert advice in shown[name]["why"]
        assert "token-broker doctor" in shown[name]["do"]


async def test_wrong_key_is_a_misconfiguration(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, key="another-resources-key")
    assert (await broker.plan())["degraded"]
    shown = await broker.strategies()
    assert {(shown[name]["capability"], shown[name]["last_status"]) for name in MINT_PATHS} == {("misconfigured", 401)}


@pytest.mark.parametrize("offset_s", [-90, 90])
@pytest.mark.parametrize("strategy", list(MINT_PATHS))
async def test_clock_90_s_off_still_mints(offset_s: float, strategy: str, start_broker: StartBroker) -> None:
    async with serve(SimulatorConfig(clock_offset_s=offset_s)) as azure:
        broker = await start_broker(azure, token_strategies=(strategy, "websocket_proxy"))
        plan = await broker.plan()
        assert plan["strategy"] == strategy
        assert_usable(plan, broker, azure)
        assert 55 <= plan["connections"][0]["expires_in_s"] <= 60
        status = (await broker.client.get("/status")).json()
        assert status["clock_skew_s"] == pytest.approx(-offset_s, abs=2)


async def test_retry_after_holds_across_requests(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, token_strategies=("ga", "unified", "websocket_proxy"))
    with azure.fault("status", MINT_PATHS["ga"], code=429, headers={"retry-after": "30"}):
        plans = [await broker.plan() for _ in range(10)]
    assert {plan["strategy"] for plan in plans} == {"unified"}
    assert mints(azure).count(MINT_PATHS["ga"]) == 1
    assert 25 < (await broker.strategies())["ga"]["retry_in_s"] <= 30


@pytest.mark.parametrize("headers", [{"retry-after-ms": "50"}, {"Retry-After": "0"}, {}])
async def test_short_retry_after_is_waited_out(
    headers: dict[str, str], azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure)
    with azure.fault("status", MINT_PATHS["ga"], code=429, times=1, headers=headers):
        plan = await broker.plan()
    assert_usable(plan, broker, azure)
    assert plan["strategy"] == "ga"
    assert mints(azure) == [MINT_PATHS["ga"]] * 2


@pytest.mark.parametrize(("name", "options"), [("status", {"code": 503}), ("reset", {}), ("reset", {"at": "body"})])
async def test_transient_fault_is_retried(
    name: str, options: dict[str, Any], azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure)
    with azure.fault(name, MINT_PATHS["ga"], times=1, **options):
        plan = await broker.plan()
    assert_usable(plan, broker, azure)
    assert plan["strategy"] == "ga"
    assert mints(azure) == [MINT_PATHS["ga"]] * 2


async def test_timed_out_attempt_is_not_repeated(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, attempt_timeout_s=0.2, token_strategies=("ga", "websocket_proxy"))
    with azure.fault("hang", MINT_PATHS["ga"]):
        assert (await broker.plan())["degraded"]
    assert mints(azure) == [MINT_PATHS["ga"]]


@pytest.mark.parametrize("strategy", list(MINT_PATHS))
async def test_iso_and_unix_expiries_are_accepted(
    strategy: str, azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure, token_strategies=(strategy, "websocket_proxy"))
    in_s = int(azure.simulator.resource.clock.now()) + 60
    for value in (in_s, in_s + 0.5, _iso(in_s, "Z"), _iso(in_s, "+00:00"), _iso(in_s, "")):
        with azure.fault("expires_at", value=value):
            plan = await broker.plan()
        assert plan["strategy"] == strategy, value
        assert 45 <= plan["connections"][0]["expires_in_s"] <= 60


def _iso(unix_s: int, zone: str) -> str:
    return datetime.fromtimestamp(unix_s, UTC).replace(tzinfo=None).isoformat() + zone
