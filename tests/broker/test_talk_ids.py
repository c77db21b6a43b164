"""A talk's id: made with the plan, kept by a plan that goes on with it, new where another talk begins."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.support.broker import RunningBroker
from tests.support.offers import OFFER
from tests.support.resources import SeveralResources, run_resources
from tests.support.waiting import eventually
from token_broker.memory.store_errors import StoreAwayError
from token_broker.security.tokens import Owner
from token_broker.sessions.talk_level import TalkLevelCounters


@pytest.fixture
async def several(tmp_path: Path) -> AsyncIterator[SeveralResources]:
    async with run_resources(tmp_path, "one") as running:
        yield running


@pytest.fixture
def broker(several: SeveralResources) -> RunningBroker:
    return several.broker


def ids_of(broker: RunningBroker, plan: dict[str, Any]) -> str:
    """The talk's id, which session token and ticket have alike."""
    ticket = broker.signer.read_ticket(plan["connections"][-1]["protocols"][1].removeprefix("ticket."))
    session = broker.signer.read_session_token(plan["session_token"])
    assert session.owner.talk_id == ticket.owner.talk_id
    return session.owner.talk_id


async def next_talk(broker: RunningBroker, plan: dict[str, Any]) -> str:
    """The talk's id of a further plan that is asked for with the plan's token."""
    again = await broker.plan({"session_id": plan["session_id"]}, X_Session_Token=plan["session_token"])
    return ids_of(broker, again)


@contextlib.asynccontextmanager
async def open_talk(plan: dict[str, Any]) -> AsyncIterator[ClientConnection]:
    proxy = plan["connections"][-1]
    protocols = [Subprotocol(name) for name in proxy["protocols"]]
    async with connect(proxy["url"], subprotocols=protocols, proxy=None, compression=None) as socket:
        assert json.loads(await socket.recv())["type"] == "broker.ready"
        yield socket


async def until_over(broker: RunningBroker) -> None:
    async def is_over() -> bool:
        return broker.relay.active == 0

    await eventually(is_over)


async def test_each_session_has_its_talk(broker: RunningBroker) -> None:
    plans = [await broker.plan() for _ in range(2)]
    talks = {ids_of(broker, plan) for plan in plans}
    assert len(talks) == 2
    assert talks.isdisjoint(plan["session_id"] for plan in plans)


async def test_live_talk_keeps_its_id(broker: RunningBroker) -> None:
    plan = await broker.plan()
    async with open_talk(plan):
        (talk,) = broker.relay._talks
        assert talk.owner.talk_id == ids_of(broker, plan)
        assert await next_talk(broker, plan) == ids_of(broker, plan)


@pytest.mark.parametrize("code", [1000, 1001])
async def test_hang_up_ends_a_talk_and_loss_does_not(broker: RunningBroker, code: int) -> None:
    plan = await broker.plan()
    async with open_talk(plan) as socket:
        await socket.close(code)
    await until_over(broker)
    assert (await next_talk(broker, plan) == ids_of(broker, plan)) is (code == 1001)
    # A plan that was made before the hang-up opens another talk, too.
    before = await broker.plan()
    kept = await broker.plan({"session_id": before["session_id"]}, X_Session_Token=before["session_token"])
    async with open_talk(before) as socket:
        await socket.close(code)
    await until_over(broker)
    async with open_talk(kept):
        (talk,) = broker.relay._talks
        assert (talk.owner.talk_id == ids_of(broker, before)) is (code == 1001)


async def test_talk_lost_long_ago_is_over(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = await broker.plan()
    async with open_talk(plan) as socket:
        monkeypatch.setattr(broker.memory.sessions, "_clock", lambda: time.time() - 61)  # when it notes the loss
        await socket.close(1001)
        await until_over(broker)
    level = broker.state["callers"].talks
    clock = level._clock
    monkeypatch.setattr(level, "_clock", lambda: clock() + 60)
    assert await next_talk(broker, plan) != ids_of(broker, plan)


async def test_limit_ends_a_talk(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", idle_timeout_s=0.3, ping_interval_s=10) as several:
        plan = await several.broker.plan()
        async with open_talk(plan) as socket:
            async for _ in socket:
                pass  # until we close it
        await until_over(several.broker)
        assert await next_talk(several.broker, plan) != ids_of(several.broker, plan)


async def test_block_ends_a_talk(broker: RunningBroker) -> None:
    plan = await broker.plan()
    async with open_talk(plan):
        broker.relay.end_where(lambda _, session: session == plan["session_id"])
        await until_over(broker)
    assert await next_talk(broker, plan) != ids_of(broker, plan)


async def test_each_use_of_a_secret_is_a_talk(broker: RunningBroker) -> None:
    minted = (await broker.client.post("/v1/realtime/client_secrets", json={})).json()
    url = f"ws{broker.base_url.removeprefix('http')}/v1/realtime?model=x"
    headers = {"Authorization": f"Bearer {minted['value']}"}
    talks = set()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            socket = await stack.enter_async_context(connect(url, additional_headers=headers, proxy=None))
            assert json.loads(await socket.recv())["type"] == "session.created"
        talks = {talk.owner.talk_id for talk in broker.relay._talks}
    assert len(talks) == 2


@pytest.mark.usefixtures("calls_without_media")
async def test_hung_up_call_is_over(broker: RunningBroker) -> None:
    plan = await broker.plan()
    headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {plan['session_token']}"}
    answer = await broker.client.post("/realtime/calls", content=OFFER, headers=headers)
    assert answer.status_code == httpx.codes.CREATED
    assert await next_talk(broker, plan) == ids_of(broker, plan)
    await broker.client.delete(answer.headers["location"], headers=headers)
    assert await next_talk(broker, plan) != ids_of(broker, plan)


async def test_other_replica_knows_what_goes_on(broker: RunningBroker) -> None:
    """What one replica saw of a talk, another one goes by: here the same broker, without its memory of it."""
    here = broker.state["callers"]

    async def next_elsewhere(plan: dict[str, Any]) -> str:
        broker.state["callers"] = replace(here, talks=TalkLevelCounters())
        try:
            return await next_talk(broker, plan)
        finally:
            broker.state["callers"] = here

    async def is_noted(plan: dict[str, Any], *, over: bool) -> bool:
        record = await broker.memory.sessions.find(plan["session_id"])
        return record is not None and record.talk_id is not None and (record.talk_over_at_s < time.time()) is over

    live, over = await broker.plan(), await broker.plan()
    async with open_talk(live):
        await eventually(partial(is_noted, live, over=False))
        assert await next_elsewhere(live) == ids_of(broker, live)
    async with open_talk(over):
        pass
    await eventually(partial(is_noted, over, over=True))
    assert await next_elsewhere(over) != ids_of(broker, over)


async def test_talk_before_its_sessions_row_is_noted(broker: RunningBroker) -> None:
    sessions = broker.memory.sessions
    owner = Owner("session-of-the-race", "anonymous", 1, talk_id="the-talk")
    sessions.note_talk(owner, over_in_s=60, begins=True)
    await asyncio.sleep(0)
    sessions.record(owner, "elena")

    async def is_noted() -> bool:
        record = await sessions.find(owner.session_id)
        return record is not None and record.talk_id == "the-talk"

    await eventually(is_noted)


async def test_silent_store_keeps_the_talk(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = await broker.plan()

    async def silent(_session_id: str) -> None:
        raise StoreAwayError("silence")

    monkeypatch.setattr(broker.memory.sessions, "find", silent)
    monkeypatch.setattr("token_broker.sessions.ownership._UNSEEN_KEPT_S", -1)
    assert await next_talk(broker, plan) == ids_of(broker, plan)
