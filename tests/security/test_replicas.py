"""Two brokers on one PostgreSQL: plans of one work at the other, and a ticket used at one is used at both."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.databases import PostgresServer
from tests.support.waiting import eventually
from token_broker.memory.maintenance import open_maintenance
from token_broker.simulator import RunningSimulator

SLACK_S = 15
OLD, NEW, STRANGE = "o" * 40, "n" * 40, "s" * 40

StartReplica = Callable[..., AbstractAsyncContextManager[RunningBroker]]


@pytest.fixture
async def replica(postgres: PostgresServer, azure: RunningSimulator, tmp_path: Path) -> StartReplica:
    """Starts a broker with these signing keys on the test's database."""
    url = SecretStr(await postgres.create())

    @contextlib.asynccontextmanager
    async def start(keys: str, **overrides: Any) -> AsyncIterator[RunningBroker]:
        # A patient store: on a slow machine a ticket must not be taken for one that the store is silent about.
        settings = make_settings(
            tmp_path,
            azure.base_url,
            database_url=url,
            signing_keys=keys,
            store_patience_s=20,
            store_timeout_s=20,
            **overrides,
        )
        async with run_broker(settings) as broker:
            await asyncio.wait_for(broker.memory.ready(), 30)
            yield broker

    return start


@contextlib.asynccontextmanager
async def talk_at(broker: RunningBroker, plan: dict[str, Any]) -> AsyncIterator[ClientConnection]:
    """The plan's proxy, asked for at `broker`, whichever replica made the plan."""
    proxy = plan["connections"][-1]
    url = f"{broker.base_url.replace('http', 'ws')}/api/v1/voice/voicelive/{plan['session_id']}"
    async with connect(url, subprotocols=proxy["protocols"], compression=None, proxy=None) as socket:
        yield socket


async def admission(broker: RunningBroker, plan: dict[str, Any]) -> int | str:
    """`broker.ready`, or the code that a newcomer with the plan's ticket is closed with."""
    async with talk_at(broker, plan) as socket, asyncio.timeout(30):
        try:
            first = await socket.recv()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 0
        return str(json.loads(first)["type"])


async def report_turn(broker: RunningBroker, plan: dict[str, Any]) -> httpx.Response:
    said = {"session_id": plan["session_id"], "agent_id": "elena", "role": "user", "content": "hello"}
    return await broker.client.post(
        "/conversation/turn", json=said, headers={"Authorization": f"Bearer {plan['session_token']}"}
    )


async def test_ticket_opens_one_talk_over_all_replicas(replica: StartReplica) -> None:
    async with replica(OLD) as one, replica(OLD) as other:
        plan = await one.plan()
        answers = await asyncio.gather(*(admission(broker, plan) for broker in (one, other) * 10))
        assert sorted(map(str, answers)) == ["4401"] * 19 + ["broker.ready"]
        assert await admission(one, plan) == await admission(other, plan) == 4401


async def test_secret_uses_counted_over_replicas(replica: StartReplica) -> None:
    async with replica(OLD, client_secret_uses=4) as one, replica(OLD, client_secret_uses=4) as other:
        secret = (await one.client.post("/v1/realtime/client_secrets", json={})).json()["value"]

        async def opens(broker: RunningBroker) -> bool:
            url = f"{broker.base_url.replace('http', 'ws')}/v1/realtime"
            headers = {"Authorization": f"Bearer {secret}"}
            try:
                async with connect(url, additional_headers=headers, compression=None, proxy=None):
                    return True
            except InvalidStatus as refused:
                return refused.response.status_code != 401

        taken = await asyncio.gather(*(opens(broker) for broker in (one, other) * 4))
        assert sum(taken) == 4
        assert not await opens(one)
        assert not await opens(other)


async def test_used_ticket_stays_used_after_restart(replica: StartReplica) -> None:
    async with replica(OLD) as one:
        plan = await one.plan()
        assert await admission(one, plan) == "broker.ready"
    async with replica(OLD) as heir:
        assert await admission(heir, plan) == 4401


async def test_other_replica_resumes_with_token_only(replica: StartReplica) -> None:
    async with replica(OLD) as one, replica(OLD) as other:
        plan = await one.plan()
        assert (await report_turn(one, plan)).status_code == 200  # the session is in the store by now
        body = {"session_id": plan["session_id"]}
        resumed = await other.plan(body, X_Session_Token=plan["session_token"])
        assert resumed["session_id"] == plan["session_id"]
        assert (await other.token(body)).response.status_code == 403


async def test_erasure_holds_at_other_replica(replica: StartReplica) -> None:
    async with replica(OLD) as one, replica(OLD) as other:
        plan = await one.plan()
        await report_turn(one, plan)
        turns = f"/api/v1/memory/sessions/{plan['session_id']}/turns"
        mine = {"Authorization": f"Bearer {plan['session_token']}"}
        assert len((await other.client.get(turns, headers=mine)).json()["turns"]) == 1
        assert (await other.client.delete(turns, headers=mine)).status_code in {200, 204}
        assert (await one.client.get(turns, headers=mine)).json()["turns"] == []


async def test_block_reaches_every_replica_in_2_s(replica: StartReplica) -> None:
    async with replica(OLD) as one, replica(OLD) as other:
        plan, bystander = await one.plan(), await other.plan()
        proof = {"session_id": plan["session_id"]}, plan["session_token"]

        async def answer_everywhere() -> set[int]:
            body, token = proof
            return {(await broker.token(body, X_Session_Token=token)).response.status_code for broker in (one, other)}

        async def refused() -> bool:
            return await answer_everywhere() == {403}

        async def let_in() -> bool:
            return await answer_everywhere() == {200}

        assert await let_in()
        async with open_maintenance(one.settings) as admin:
            await admin.block("session", plan["session_id"])
            await eventually(refused, within_s=2 + SLACK_S)
            for broker in (one, other):
                assert (await report_turn(broker, plan)).status_code == 403
                await broker.plan({"session_id": bystander["session_id"]}, X_Session_Token=bystander["session_token"])
            await admin.unblock("session", plan["session_id"])
        await eventually(let_in, within_s=2 + SLACK_S)


@pytest.mark.parametrize(
    ("keys", "next_keys"), [(OLD, f"{OLD},{NEW}"), (f"{OLD},{NEW}", f"{NEW},{OLD}"), (f"{NEW},{OLD}", NEW)]
)
async def test_rotation_steps_accept_each_others_plans(keys: str, next_keys: str, replica: StartReplica) -> None:
    async with replica(keys) as before, replica(next_keys) as after:
        for maker, taker in ((before, after), (after, before)):
            plan = await maker.plan()
            assert await admission(taker, plan) == "broker.ready"
            assert (await report_turn(taker, plan)).status_code == 200


async def test_one_step_rotation_would_refuse_plans(replica: StartReplica) -> None:
    async with replica(OLD) as before, replica(f"{NEW},{OLD}") as after:
        assert await admission(before, await after.plan()) == 4401


async def test_talk_outlives_key_rotation(replica: StartReplica) -> None:
    async with replica(OLD) as before, contextlib.AsyncExitStack() as stack:
        plan = await before.plan()
        talk = await stack.enter_async_context(talk_at(before, plan))
        assert json.loads(await talk.recv())["type"] == "broker.ready"
        after = await stack.enter_async_context(replica(f"{NEW},{OLD}"))
        assert (await report_turn(after, plan)).status_code == 200
        resumed = await after.plan({"session_id": plan["session_id"]}, X_Session_Token=plan["session_token"])
        assert resumed["session_id"] == plan["session_id"]
        await talk.send(json.dumps({"type": "broker.agent.switch", "agent_id": "nobody"}))
        async with asyncio.timeout(15):
            while (event := json.loads(await talk.recv()))["type"] != "broker.error":
                pass
        assert event["code"] == "unknown_agent"  # the talk is there and answers
        last = await stack.enter_async_context(replica(NEW))
        assert (await report_turn(last, resumed)).status_code == 200
        assert (await report_turn(last, plan)).status_code == 401


async def test_broker_with_other_key_accepts_nothing(replica: StartReplica) -> None:
    async with replica(OLD) as ours, replica(STRANGE) as strange:
        plan = await strange.plan()
        assert await admission(ours, plan) == 4401
        assert (await report_turn(ours, plan)).status_code == 401
        resumed = await ours.token({"session_id": plan["session_id"]}, X_Session_Token=plan["session_token"])
        assert resumed.response.status_code == 403
