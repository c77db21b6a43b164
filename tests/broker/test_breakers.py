"""What the broker remembers of Azure: breakers, missing routes, wrong credentials; and that none of it costs time."""

import asyncio
import dataclasses
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.conftest import StartBroker
from tests.support.broker import RunningBroker
from tests.support.plans import MINT_PATHS, assert_usable
from tests.support.waiting import eventually
from token_broker.security.owner import Owner
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve


def mints(azure: RunningSimulator) -> list[str]:
    return [request.path for request in azure.requests if request.method == "POST"]


async def breakers_become(state: str, broker: RunningBroker, names: Collection[str] = MINT_PATHS.keys()) -> None:
    async def are() -> bool:
        shown = await broker.strategies()
        return {shown[name]["breaker"] for name in names} == {state}

    await eventually(are)


async def test_with_all_breakers_open_azure_is_not_asked(azure: RunningSimulator, start_broker: StartBroker) -> None:
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


async def test_with_all_breakers_open_a_slow_memory_costs_nothing(
    azure: RunningSimulator, start_broker: StartBroker
) -> None:
    class SlowRecall:
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


async def test_a_memory_that_breaks_its_promise_never_to_fail_still_leaves_the_proxy(
    azure: RunningSimulator, start_broker: StartBroker
) -> None:
    class BrokenRecall:
        async def block(self, owner: Owner) -> str:
            raise RuntimeError("broken")

    broker = await start_broker(azure)
    broker.state["minting"] = dataclasses.replace(broker.state["minting"], recall=BrokenRecall())
    answer = await broker.token()
    assert_usable(answer.plan, broker, azure)


async def test_recovery_is_noticed_by_one_probe_and_not_by_a_stampede(
    azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure, breaker_failures=1, breaker_open_s=0.3, token_budget_s=20, attempt_timeout_s=10)
    azure.set_faults({"match": "/", "fault": "status", "code": 503})
    assert (await broker.plan())["degraded"]
    await breakers_become("half_open", broker)
    azure.set_faults({"match": "/", "fault": "slow", "seconds": 1.5})
    azure.simulator.log.clear()
    plans = await broker.burst(200)
    assert mints(azure) == [MINT_PATHS["ga"]]
    assert sorted(plan["strategy"] for plan in plans) == ["ga", *["websocket_proxy"] * 199]
    azure.set_faults()
    assert (await broker.plan())["strategy"] == "ga"


async def test_a_probe_that_fails_keeps_the_breaker_open_for_another_rest(
    azure: RunningSimulator, start_broker: StartBroker
) -> None:
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
async def test_a_route_that_is_missing_once_is_not_knocked_at_again(
    faulty: str, azure: RunningSimulator, start_broker: StartBroker
) -> None:
    others = [name for name in MINT_PATHS if name != faulty]
    broker = await start_broker(azure, token_strategies=(faulty, *others, "websocket_proxy"))
    with azure.fault("status", MINT_PATHS[faulty], code=404):
        plans = [await broker.plan() for _ in range(101)]
    assert {plan["strategy"] for plan in plans} == {others[0]}
    assert len([path for path in mints(azure) if path.startswith(MINT_PATHS[faulty])]) == 1
    shown = (await broker.strategies())[faulty]
    assert (shown["capability"], shown["breaker"], shown["attempts"]) == ("missing", "open", 1)
    assert 500 < shown["retry_in_s"] <= 600


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "is the key this resource's own?"), (403, "AZURE_VOICELIVE_AUTH=entra")]
)
async def test_a_refused_credential_is_said_loudly_in_log_and_status_with_what_to_do(
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


async def test_a_wrong_key_at_the_simulated_azure_is_a_misconfiguration(
    azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure, key="another-resources-key")
    assert (await broker.plan())["degraded"]
    shown = await broker.strategies()
    assert {(shown[name]["capability"], shown[name]["last_status"]) for name in MINT_PATHS} == {("misconfigured", 401)}


@pytest.mark.parametrize("offset_s", [-90, 90])
@pytest.mark.parametrize("strategy", list(MINT_PATHS))
async def test_a_clock_that_is_90_s_off_still_mints(offset_s: float, strategy: str, start_broker: StartBroker) -> None:
    async with serve(SimulatorConfig(clock_offset_s=offset_s)) as azure:
        broker = await start_broker(azure, token_strategies=(strategy, "websocket_proxy"))
        plan = await broker.plan()
        assert plan["strategy"] == strategy
        assert_usable(plan, broker, azure)
        assert 55 <= plan["connections"][0]["expires_in_s"] <= 60
        status = (await broker.client.get("/status")).json()
        assert status["clock_skew_s"] == pytest.approx(-offset_s, abs=2)


async def test_a_rate_limit_that_azure_names_is_kept_to_across_requests(
    azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure, token_strategies=("ga", "unified", "websocket_proxy"))
    with azure.fault("status", MINT_PATHS["ga"], code=429, headers={"retry-after": "30"}):
        plans = [await broker.plan() for _ in range(10)]
    assert {plan["strategy"] for plan in plans} == {"unified"}
    assert mints(azure).count(MINT_PATHS["ga"]) == 1
    assert 25 < (await broker.strategies())["ga"]["retry_in_s"] <= 30


@pytest.mark.parametrize("headers", [{"retry-after-ms": "50"}, {"Retry-After": "0"}, {}])
async def test_a_rate_limit_that_passes_within_the_budget_is_waited_out(
    headers: dict[str, str], azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure)
    with azure.fault("status", MINT_PATHS["ga"], code=429, times=1, headers=headers):
        plan = await broker.plan()
    assert_usable(plan, broker, azure)
    assert plan["strategy"] == "ga"
    assert mints(azure) == [MINT_PATHS["ga"]] * 2


@pytest.mark.parametrize(("name", "options"), [("status", {"code": 503}), ("reset", {}), ("reset", {"at": "body"})])
async def test_a_fault_that_passes_at_once_is_tried_again(
    name: str, options: dict[str, Any], azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure)
    with azure.fault(name, MINT_PATHS["ga"], times=1, **options):
        plan = await broker.plan()
    assert_usable(plan, broker, azure)
    assert plan["strategy"] == "ga"
    assert mints(azure) == [MINT_PATHS["ga"]] * 2


async def test_an_attempt_that_timed_out_is_not_repeated_in_the_same_request(
    azure: RunningSimulator, start_broker: StartBroker
) -> None:
    broker = await start_broker(azure, attempt_timeout_s=0.2, token_strategies=("ga", "websocket_proxy"))
    with azure.fault("hang", MINT_PATHS["ga"]):
        assert (await broker.plan())["degraded"]
    assert mints(azure) == [MINT_PATHS["ga"]]


@pytest.mark.parametrize("strategy", list(MINT_PATHS))
async def test_expiries_as_iso_and_as_unix_seconds_are_both_taken(
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
