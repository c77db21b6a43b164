"""Entra through azure-identity itself, against a fake of the platform's managed identity endpoint."""

import asyncio

import pytest
from structlog.testing import capture_logs

from tests.conftest import StartBroker
from tests.support.entra import IdentityEndpoint
from tests.support.machine import retry_if_host_busy
from tests.support.plans import MINT_PATHS, assert_usable
from tests.support.waiting import eventually
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

SLACK_S = 0.25


async def test_cold_burst_makes_one_credential_call(
    azure: RunningSimulator, identity: IdentityEndpoint, start_broker: StartBroker
) -> None:
    identity.healthy.clear()
    # A budget for a slow machine: none of 100 at once may go on to the next strategy because its time is up.
    broker = await start_broker(azure, key=None, azure_auth="entra", token_budget_s=60, attempt_timeout_s=30)
    asking = asyncio.create_task(broker.burst(100))
    await identity.until_asked()
    identity.healthy.set()
    plans = await asking
    assert {plan["strategy"] for plan in plans} == {"ga"}
    assert identity.resources == ["https://ai.azure.com"]
    assert {request.auth for request in azure.requests if request.method == "POST"} == {"entra"}


@pytest.mark.slow
@retry_if_host_busy()
async def test_hanging_entra_delays_only_the_first(
    azure: RunningSimulator, identity: IdentityEndpoint, start_broker: StartBroker
) -> None:
    identity.healthy.clear()
    calls_before = identity.calls
    broker = await start_broker(azure, key=None, azure_auth="entra", token_budget_s=2.4)
    first = await broker.token()
    assert first.took_s < 2.4 + SLACK_S
    assert_usable(first.plan, broker, azure)
    shown = await broker.strategies()
    assert {shown[name]["last_outcome"] for name in MINT_PATHS} == {"no_credential"}
    second = await broker.token()
    assert second.plan["degraded"]
    assert second.took_s < 0.6
    identity.healthy.set()

    async def minted() -> bool:
        return not (await broker.plan())["degraded"]

    await eventually(minted)
    assert identity.calls == calls_before + 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 403, 500])
@retry_if_host_busy()
async def test_refusing_entra_leaves_the_proxy(
    status: int, azure: RunningSimulator, identity: IdentityEndpoint, start_broker: StartBroker
) -> None:
    identity.status = status
    with capture_logs() as logs:
        broker = await start_broker(azure, key=None, azure_auth="entra", token_budget_s=8, credential_timeout_s=1)
        answer = await broker.token()
    assert answer.took_s < 8 + SLACK_S
    assert_usable(answer.plan, broker, azure)
    assert answer.plan["degraded"]
    told = [entry for entry in logs if entry["event"] == "no_entra_token"]
    assert [entry["log_level"] for entry in told] == ["error"]
    assert "managed identity" in told[0]["do"]
    assert {entry["outcome"] for entry in logs if entry["event"] == "mint_failed"} == {"no_credential"}


async def test_disabled_key_gives_way_to_entra(identity: IdentityEndpoint, start_broker: StartBroker) -> None:
    async with serve(SimulatorConfig(keys_disabled=True)) as azure:
        broker = await start_broker(azure, azure_auth="auto")
        with capture_logs() as logs:
            plans = [await broker.plan() for _ in range(3)]
        for plan in plans:
            assert plan["strategy"] == "ga"
        assert_usable(plans[-1], broker, azure)
        # The key was shown once; from then on Entra alone is used.
        assert [request.auth for request in azure.requests if request.method == "POST"] == ["key", *["entra"] * 3]
        assert identity.calls == 1
        assert [entry["do"] for entry in logs if entry["event"] == "keys_are_off"] == [
            "Azure refuses keys on this resource: Entra is used; unset AZURE_VOICELIVE_KEY"
        ]


async def test_disabled_key_without_entra_is_logged(start_broker: StartBroker) -> None:
    async with serve(SimulatorConfig(keys_disabled=True)) as azure:
        broker = await start_broker(azure, azure_auth="key")
        with capture_logs() as logs:
            plan = await broker.plan()
        assert_usable(plan, broker, azure)
        assert plan["degraded"]
        loud = [entry for entry in logs if entry["event"] == "mint_failed"]
        assert [(entry["log_level"], entry["status"]) for entry in loud] == [("error", 403)] * 4
        assert all("AZURE_VOICELIVE_AUTH=entra" in entry["why"] for entry in loud)
        shown = await broker.strategies()
        assert {shown[name]["capability"] for name in MINT_PATHS} == {"misconfigured"}


async def test_identity_and_scope_are_asked_for(
    azure: RunningSimulator, identity: IdentityEndpoint, start_broker: StartBroker
) -> None:
    broker = await start_broker(
        azure,
        key=None,
        azure_auth="auto",
        client_id="11111111-2222-3333-4444-555555555555",
        entra_scope="https://cognitiveservices.azure.com/.default",
    )
    assert (await broker.plan())["strategy"] == "ga"
    assert identity.resources == ["https://cognitiveservices.azure.com"]
    assert identity.client_ids == ["11111111-2222-3333-4444-555555555555"]
