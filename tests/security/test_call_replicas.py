"""Calls over two brokers on one PostgreSQL: a killed one loses none, a leaving one hands its own over."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import WSMsgType, web
from openai import AsyncOpenAI
from pydantic import SecretStr
from sqlalchemy import Connection, func, select
from websockets.exceptions import InvalidStatus

from benchmarks.failover import offer
from tests.calls.test_relayed_calls import ANSWER, CallsAzure, calls_azure
from tests.hooks.support import SECRET
from tests.live.support import agents_file
from tests.memory.support.stores import opened
from tests.support.agents import write_agents
from tests.support.broker import (
    BrokerProcess,
    RunningBroker,
    environment,
    make_settings,
    plain_client,
    run_broker,
    run_process,
)
from tests.support.databases import PostgresServer
from tests.support.offers import OFFER
from tests.support.signalling import signalling_page
from tests.support.waiting import eventually
from token_broker.calls.call_row import DELIVERED
from token_broker.memory.drivers.connect import connect
from token_broker.memory.store.sessions import block
from token_broker.memory.store.tables import calls
from token_broker.security.tokens import MintedSession, Owner, TokenSigner
from token_broker.simulator import SimulatorConfig, serve
from token_broker.web.requests import uuid7

WITHIN_S = 30  # 10 s, and the machine's load


@dataclass
class LiveCalls:
    """Calls that live until they are hung up, and who has joined them."""

    azure: CallsAzure | None = None
    made: int = 0
    joined: dict[str, int] | None = None  # sidebands now, by call
    joins: int = 0

    async def make(self, request: web.Request) -> web.StreamResponse:
        name = f"rtc_{self.made}"
        self.made += 1
        return web.Response(status=201, text=ANSWER, headers={"Location": f"/v1/realtime/calls/{name}"})

    @property
    def hung_up(self) -> set[str]:
        assert self.azure is not None
        return {call for call, _ in self.azure.hung_up}

    async def join(self, request: web.Request) -> web.StreamResponse:
        call, joined = request.query["call_id"], self.joined
        assert joined is not None
        if call in self.hung_up:
            return web.Response(status=404)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.joins += 1
        joined[call] = joined.get(call, 0) + 1
        try:
            while call not in self.hung_up:
                try:
                    message = await asyncio.wait_for(socket.receive(), 0.1)
                except TimeoutError:
                    continue
                if message.type is WSMsgType.TEXT:
                    session = {
                        "type": "session.updated",
                        "session": {**message.json().get("session", {}), "id": "sess_1"},
                    }
                    await socket.send_json(session)
                if message.type in {WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR}:
                    break
        finally:
            joined[call] -= 1
        return socket


@dataclass
class Two:
    database_url: str
    live: LiveCalls
    one: BrokerProcess
    other: BrokerProcess

    @contextlib.asynccontextmanager
    async def client(self, broker: BrokerProcess) -> AsyncIterator[httpx.AsyncClient]:
        async with plain_client(broker.base_url) as client:
            yield client

    async def call(self, broker: BrokerProcess) -> tuple[str, dict[str, str]]:
        """A call of a talk of its own: its Location, and the headers of its client."""
        async with plain_client(broker.base_url) as client:
            plan: dict[str, Any] = (await client.post("/realtime/token", json={})).json()
            mine = {"Authorization": f"Bearer {plan['session_token']}"}
            placed = await client.post(
                "/realtime/calls", content=OFFER, headers={**mine, "Content-Type": "application/sdp"}
            )
            assert placed.status_code == 201, placed.text
            return placed.headers["location"], mine

    async def all_joined(self) -> bool:
        joined = self.live.joined or {}
        alive = {f"rtc_{number}" for number in range(self.live.made)} - self.live.hung_up
        return all(joined.get(call) == 1 for call in alive) and all(not joined.get(each) for each in self.live.hung_up)


@pytest.fixture
async def two(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[Two]:
    live = LiveCalls(joined={})
    async with postgres.lend() as url, calls_azure(live.join) as azure, contextlib.AsyncExitStack() as stack:
        live.azure = azure
        azure.take_offer = live.make

        async def start() -> BrokerProcess:
            env = environment(
                tmp_path,
                azure.url,
                BROKER_DATABASE_URL=url,
                BROKER_SIGNING_KEY="k" * 40,
                AZURE_VOICELIVE_ENDPOINT_KIND="direct",
                BROKER_DRAIN_S="20",
                BROKER_AUTH="none",
                BROKER_MAX_SESSIONS_PER_PRINCIPAL="0",
            )
            return await stack.enter_async_context(run_process("serve", env, tmp_path))

        yield Two(url, live, await start(), await start())


async def test_killed_replicas_calls_are_taken(two: Two) -> None:
    locations = [await two.call(two.one) for _ in range(3)]
    await eventually(two.all_joined, within_s=WITHIN_S)
    before = two.live.joins
    await asyncio.sleep(2)  # until the other lives long enough to take calls, the leases are renewed
    two.one.process.send_signal(signal.SIGKILL)
    await two.one.process.wait()

    async def joined_again() -> bool:
        return two.live.joins == before + 3 and await two.all_joined()

    await eventually(joined_again, within_s=WITHIN_S)
    assert not two.live.hung_up
    location, mine = locations[0]
    async with two.client(two.other) as client:
        assert (await client.delete(location, headers=mine)).status_code == 204
    assert two.live.hung_up == {"rtc_0"}
    await eventually(two.all_joined)


async def test_paused_replica_comes_back_in_vain(two: Two) -> None:
    for _ in range(2):
        await two.call(two.one)
    await eventually(two.all_joined, within_s=WITHIN_S)
    await asyncio.sleep(6)  # a replica that has just come takes nothing yet
    two.one.process.send_signal(signal.SIGSTOP)
    try:

        async def taken() -> bool:
            return two.live.joins == 4

        await eventually(taken, within_s=WITHIN_S)
    finally:
        two.one.process.send_signal(signal.SIGCONT)
    await eventually(two.all_joined, within_s=WITHIN_S)
    assert not two.live.hung_up
    assert "call_left_to_another" in two.one.log


async def test_drain_moves_calls(two: Two) -> None:
    for _ in range(20):
        await two.call(two.one)
    await eventually(two.all_joined, within_s=WITHIN_S)
    two.one.process.send_signal(signal.SIGTERM)  # a replica that has just come takes what is given up
    await asyncio.wait_for(two.one.process.wait(), WITHIN_S)

    await eventually(two.all_joined, within_s=WITHIN_S)
    assert two.live.joins == 40
    assert not two.live.hung_up, two.one.log
    two.other.process.send_signal(signal.SIGTERM)  # and now there is nobody else
    await asyncio.wait_for(two.other.process.wait(), 60)
    assert len(two.live.hung_up) == 20


async def events_of(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    async with asyncio.timeout(WITHIN_S), client.stream("GET", f"{path}/events", headers=headers) as answer:
        assert answer.status_code == 200, (await answer.aread())[:400]
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


async def test_call_is_read_and_hung_up_at_the_other(two: Two) -> None:
    """And a call whose session is blocked, by whomever, is hung up by its holder."""
    location, mine = await two.call(two.one)
    await eventually(two.all_joined, within_s=WITHIN_S)
    async with two.client(two.other) as client:
        told = []

        async def is_known() -> bool:  # its row follows the call
            async with client.stream("GET", f"{location}/events", headers=mine) as answer:
                return answer.status_code == 200

        await eventually(is_known)
        async for event in events_of(client, location, mine):
            told.append(event["type"])
            if len(told) == 1:
                assert event["call_id"] == location.rpartition("/")[2]
                assert (await client.delete(location, headers=mine)).status_code == 204
    assert told == ["broker.attached", "broker.detached"]
    assert two.live.hung_up == {"rtc_0"}
    _, blocked = await two.call(two.one)
    claims = TokenSigner([SecretStr("k" * 40)]).read_session_token(blocked["Authorization"].removeprefix("Bearer "))
    async with opened(connect(SecretStr(two.database_url), timeout_s=30, patience_s=30)) as database:
        await database.write(partial(block, kind="session", name=claims.owner.session_id, now_us=1))

    async def is_hung_up() -> bool:
        return two.live.hung_up == {"rtc_0", "rtc_1"}

    await eventually(is_hung_up, within_s=WITHIN_S)
    async with two.client(two.one) as client:

        async def given_back() -> bool:
            return "token_broker_open_talks 0.0" in (await client.get("/metrics")).text

        await eventually(given_back)


async def test_call_is_attached_once_over_both(two: Two) -> None:
    assert two.live.azure is not None
    minted = MintedSession("sess_1", two.live.azure.url, "default")
    session_id, signer = uuid7(), TokenSigner([SecretStr("k" * 40)])

    def headers(session_id: str) -> dict[str, str]:
        owner = Owner(session_id, "anonymous", 1, talk_id=uuid7())
        return {"Authorization": f"Bearer {signer.session_token(owner, ttl_s=60, agent_id='elena', minted=minted)}"}

    async with two.client(two.one) as here, two.client(two.other) as there:

        async def attach(client: httpx.AsyncClient, session_id: str) -> httpx.Response:
            return await client.post("/realtime/calls/attach", json={"call_id": "rtc_0"}, headers=headers(session_id))

        two.live.made = 1
        answers = [await attach(client, session_id) for client in (here, there, here, there)]
        assert [each.status_code for each in answers] == [202] * 4
        path = f"/realtime/calls/{answers[1].json()['call_id']}"
        events = events_of(there, path, headers(session_id))
        assert (await anext(events))["type"] == "broker.attached"
        await events.aclose()  # type: ignore[attr-defined]
        assert two.live.joins == 1
        assert [(await attach(client, uuid7())).status_code for client in (here, there)] == [403, 403]
        assert (await there.delete(path, headers=headers(session_id))).status_code == 204
        assert two.live.hung_up == {"rtc_0"}
        assert two.live.joins == 1


async def test_signalled_call_of_a_killed_replica(postgres: PostgresServer, tmp_path: Path) -> None:
    """Its control socket dies with the replica, and the call with that; the page goes on at the other one."""
    async with postgres.lend() as url, serve(SimulatorConfig()) as azure, contextlib.AsyncExitStack() as stack:
        env = environment(
            tmp_path,
            azure.base_url,
            BROKER_DATABASE_URL=url,
            BROKER_SIGNING_KEY="k" * 40,
            BROKER_AUTH="none",
            BROKER_MAX_SESSIONS_PER_PRINCIPAL="1",
            BROKER_TOKEN_STRATEGIES="voice_live_webrtc,websocket_proxy",
            AZURE_VOICELIVE_WEBRTC="on",
        )
        one, other = [await stack.enter_async_context(run_process("serve", env, tmp_path)) for _ in range(2)]
        here, there = [await stack.enter_async_context(plain_client(each.base_url)) for each in (one, other)]

        async def turns() -> list[dict[str, Any]]:
            answer = await there.get(f"/api/v1/memory/sessions/{plan['session_id']}/turns", headers=mine)
            found: list[dict[str, Any]] = answer.json()["turns"]
            return found

        async def used() -> dict[str, Any]:
            """One talk, whichever replica had it."""
            found: list[dict[str, Any]] = (await there.get("/api/v1/usage", headers=mine)).json()["usage"]
            return found[0] if found else {"responses": 0}

        async def are_kept(count: int) -> bool:
            return len(await turns()) == count and (await used())["responses"] == count // 2

        async def given_back() -> bool:
            return "token_broker_open_talks 0.0" in (await there.get("/metrics")).text

        plan = (await here.post("/realtime/token", json={})).json()
        mine = {"Authorization": f"Bearer {plan['session_token']}"}
        first = plan["connections"][0]
        assert first["transport"] == "webrtc_websocket"
        async with signalling_page(first["url"], first["protocols"]) as page:
            await page.until("broker.ready")
            await page.ask("First?")
            await eventually(lambda: are_kept(2))
            one.process.send_signal(signal.SIGKILL)
            await one.process.wait()
            assert await page.closed() == 1006
        await azure.until_calls(0)
        again = await there.post(
            "/realtime/token",
            json={"session_id": plan["session_id"]},
            headers={"X-Session-Token": plan["session_token"]},
        )
        second = again.json()["connections"][0]
        assert second["transport"] == "webrtc_websocket"
        async with signalling_page(second["url"], second["protocols"]) as page:
            await page.until("broker.ready")
            await page.ask("Second?")
        await azure.until_calls(0)
        await eventually(lambda: are_kept(4))
        assert [each["content"] for each in await turns() if each["role"] == "user"] == ["First?", "Second?"]
        await eventually(given_back)
        told = await used()
        assert (told["seen"], told["complete"], told["unmeasured"]) == (True, False, 2)
        assert (told["input_tokens"], told["output_tokens"]) == (None, None)


async def test_live_session_moves_to_its_sideband(postgres: PostgresServer, tmp_path: Path) -> None:
    """An official client's sideband that reaches another replica than the one that placed the call."""
    agents = write_agents(tmp_path, agents_file(None))
    async with postgres.lend() as url, serve(SimulatorConfig()) as azure, contextlib.AsyncExitStack() as stack:
        settings = [
            make_settings(
                tmp_path,
                azure.base_url,
                database_url=SecretStr(url),
                signing_keys="k" * 40,
                agents_file=agents,
                tools_secret=SECRET,
                store_patience_s=20,
            )
            for _ in range(2)
        ]
        one = await stack.enter_async_context(run_broker(settings[0]))
        await asyncio.wait_for(one.memory.ready(), 30)
        other = await stack.enter_async_context(run_broker(settings[1]))
        await asyncio.wait_for(other.memory.ready(), 30)
        minted = await one.client.post("/v1/realtime/client_secrets", json={"metadata": {"agent_id": "ann"}})
        secret = minted.json()["value"]
        transport: Any = {"type": "webrtc", "sdp": await offer()}
        async with AsyncOpenAI(api_key=secret, base_url=f"{one.base_url}/v1", max_retries=0) as official:
            made = await official.live.create(session={"model": "x"}, transport=transport)
        name = made.session.id

        async def is_stored() -> bool:  # its row follows the call
            return (await other.memory.database.read(count_calls)) == 1

        await eventually(is_stored)

        def official_at(broker: RunningBroker) -> AsyncOpenAI:
            return AsyncOpenAI(api_key=secret, base_url=f"{broker.base_url}/v1", max_retries=0)

        def held() -> tuple[int, int]:
            return len(one.state["watched"]), len(other.state["watched"])

        async def is_refused(broker: RunningBroker) -> bool:
            """What a sideband is told where another replica serves one."""
            async with official_at(broker) as official:
                try:
                    async with official.live.sideband.connect(session_id=name):
                        return False
                except InvalidStatus as refused:
                    answer = refused.response
            assert json.loads(answer.body or b"{}")["code"] == "sideband_elsewhere"
            assert (answer.status_code, answer.headers["Retry-After"]) == (409, "2")
            return True

        async with (
            official_at(other) as official,
            official.live.sideband.connect(session_id=name) as sideband,
            asyncio.timeout(WITHIN_S),
        ):
            await (
                sideband.session.input_audio.mute()
            )  # it waits: while the former holder does not know, Azure has its own
            assert (await sideband.recv()).type == "session.input_audio.muted"
            await eventually(lambda: is_refused(one))
            assert held() == (0, 1)
            assert await is_refused(one)
            assert held() == (0, 1)

        async def comes_back() -> bool:
            return not await is_refused(one)

        await eventually(comes_back)

        async def has_moved() -> bool:
            return held() == (1, 0) and not other.talks.active

        await eventually(has_moved)
        assert azure.calls == 1


def count_calls(connection: Connection) -> int:
    return int(connection.scalar(select(func.count()).select_from(calls).where(calls.c.state == DELIVERED)) or 0)
