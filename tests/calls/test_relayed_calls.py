"""The SDP relay over real sockets: the whole application, and a fake Azure that mints and accepts offers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from pydantic import SecretStr

from tests.relay.support.broker import KEY
from tests.support.broker import make_settings, run_broker
from tests.support.machine import retry_if_host_busy
from tests.support.offers import OFFER
from tests.support.waiting import eventually
from token_broker.api.offers import PlacedCall
from token_broker.calls.running_calls import EndedCalls
from token_broker.memory.drivers.database import Database
from token_broker.memory.maintenance import open_maintenance
from token_broker.security.tokens import Owner, TokenSigner
from token_broker.sessions.plans import session_spec
from token_broker.web.requests import uuid7

EPHEMERAL = "ek_canary_9d2f"
ANSWER = OFFER.replace("o=- 1", "o=- 9")
SIGNING_KEY = "k" * 40

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class CallsAzure:
    """GA's mint and calls routes; tests replace `take_offer` and `end_call`."""

    url: str = ""
    offers: list[tuple[str, str, str]] = field(default_factory=list)  # query, authorization, body
    hung_up: list[tuple[str, str | None]] = field(default_factory=list)  # call, api-key
    mints: int = 0
    told: list[str] = field(default_factory=list)  # the instructions of each mint
    mint_status: int = 200
    take_offer: Handler | None = None
    hang_up_status: int = 200

    async def mint(self, request: web.Request) -> web.Response:
        self.mints += 1
        self.told.append((await request.json())["session"]["instructions"])
        if self.mint_status != 200:
            return web.json_response({"error": {"code": "x", "message": "no"}}, status=self.mint_status)
        return web.json_response({"value": EPHEMERAL, "expires_at": int(time.time()) + 60, "session": {}})

    async def call(self, request: web.Request) -> web.StreamResponse:
        self.offers.append((request.query_string, request.headers["Authorization"], await request.text()))
        if self.take_offer is not None:
            return await self.take_offer(request)
        return web.Response(status=201, text=ANSWER, headers={"Location": "/v1/realtime/calls/rtc_abc"})

    async def end(self, request: web.Request) -> web.Response:
        self.hung_up.append((request.match_info["call"], request.headers.get("api-key")))
        return web.Response(status=self.hang_up_status)


@contextlib.asynccontextmanager
async def calls_azure(join: Handler | None = None) -> AsyncIterator[CallsAzure]:
    """GA with no calls to join, unless `join` answers who wants to."""
    azure = CallsAzure()
    app = web.Application()
    if join is not None:
        app.router.add_get("/openai/v1/realtime", join)
    app.router.add_post("/openai/v1/realtime/client_secrets", azure.mint)
    app.router.add_post("/openai/v1/realtime/calls", azure.call)
    app.router.add_post("/openai/v1/realtime/calls/{call}/hangup", azure.end)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    azure.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield azure
    finally:
        await runner.cleanup()


@dataclass
class Caller:
    client: httpx.AsyncClient
    state: Any

    def token(self, session_id: str, *, ttl_s: int = 60) -> str:
        signer = TokenSigner([SecretStr(SIGNING_KEY)])
        return signer.session_token(Owner(session_id, "anonymous", 1), ttl_s=ttl_s)

    async def offer(
        self, session_id: str, *, token: str | None = None, body: str = OFFER, **headers: str
    ) -> httpx.Response:
        sent = {"Content-Type": "application/sdp", "Authorization": f"Bearer {token or self.token(session_id)}"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(
            f"/realtime/calls?session_id={session_id}", content=body, headers={**sent, **named}
        )

    async def hang_up(self, location: str, session_id: str) -> httpx.Response:
        return await self.client.delete(location, headers={"Authorization": f"Bearer {self.token(session_id)}"})


@contextlib.asynccontextmanager
async def caller(azure: CallsAzure, tmp_path: Path, **overrides: Any) -> AsyncIterator[Caller]:
    chosen: dict[str, Any] = {
        "endpoint_kind": "direct",
        "key": SecretStr(KEY),
        "signing_keys": SIGNING_KEY,
        "token_budget_s": 10.0,
        "rate_limit_per_minute": 60,
    }
    running = run_broker(make_settings(tmp_path, azure.url, **(chosen | overrides)))
    async with running as broker:
        yield Caller(broker.client, broker.state)


async def test_call_is_hung_up_where_it_was_made(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        session = uuid7()
        response = await browser.offer(session)
        assert (response.status_code, response.text) == (201, ANSWER)
        assert response.headers["content-type"] == "application/sdp"
        assert azure.offers == [("webrtcfilter=on", f"Bearer {EPHEMERAL}", OFFER)]
        location = response.headers["location"]
        assert location.startswith("/realtime/calls/")
        assert "rtc_abc" not in location
        assert browser.state["calls"].talks.active == 1
        assert (await browser.hang_up(location, session)).status_code == 204
        assert azure.hung_up == [("rtc_abc", KEY)]
        assert browser.state["calls"].talks.active == 0
        assert not any(secret in response.text + str(response.headers) for secret in (KEY, EPHEMERAL))


async def test_blocked_session_may_only_hang_up(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        session, other = uuid7(), uuid7()
        location = (await browser.offer(session)).headers["location"]
        async with open_maintenance(browser.state["callers"].settings) as admin:
            await admin.block("session", session)
        await browser.state["memory"].blocklist.refresh()
        refused = await browser.offer(session)
        assert (refused.status_code, refused.json()["code"]) == (403, "blocked")
        assert (azure.mints, len(azure.offers)) == (1, 1), "Azure is asked for nothing"
        assert (await browser.hang_up(location, session)).status_code == 204
        assert (await browser.offer(other)).status_code == 201


async def test_relayed_call_uses_plans_agent(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        plan = (await browser.client.post("/realtime/token", json={"agent_id": "marcus"})).json()
        relayed = next(found for found in plan["connections"] if found["transport"] == "webrtc_relay")
        response = await browser.client.post(
            httpx.URL(relayed["url"]).raw_path.decode(),
            content=OFFER,
            headers={"Content-Type": "application/sdp", "Authorization": f"Bearer {relayed['token']}"},
        )
        assert response.status_code == 201
        assert [told.startswith("You are Marcus") for told in azure.told] == [True, True]


@pytest.mark.parametrize("status", [404, 204])
async def test_call_unknown_to_azure_counts_as_ended(status: int, tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        session = uuid7()
        location = (await browser.offer(session)).headers["location"]
        azure.hang_up_status = status
        assert (await browser.hang_up(location, session)).status_code == 204


async def test_foreign_token_hangs_nothing_up(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        session = uuid7()
        location = (await browser.offer(session)).headers["location"]
        assert (await browser.hang_up(location, uuid7())).status_code == 404
        assert (await browser.hang_up(location[:-3], session)).status_code == 404
        assert (await browser.hang_up("/realtime/calls/rtc_abc", session)).status_code == 404
        assert azure.hung_up == []


async def test_bad_requests_never_reach_azure(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        session = uuid7()
        expired, foreign = browser.token(session, ttl_s=-61), browser.token(uuid7())
        cases = {
            400: await browser.offer(session, body="hello"),
            401: await browser.offer(session, token=expired),
            403: await browser.offer(session, token=foreign),
            413: await browser.offer(session, body=OFFER + "a=x\r\n" * 20_000),
            415: await browser.offer(session, Content_Type="application/json"),
        }
        assert [response.status_code for response in cases.values()] == list(cases)
        assert all(r.headers["content-type"] == "application/problem+json" for r in cases.values())
        assert cases[401].headers["www-authenticate"] == "Bearer"
        empty, not_audio = await browser.offer(session, body=""), await browser.offer(session, body="v=0\r\n")
        assert (empty.status_code, not_audio.status_code) == (400, 400)
        assert azure.mints == 0


async def test_no_mint_answers_503_and_frees_place(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        azure.mint_status = 401
        response = await browser.offer(uuid7())
        assert (response.status_code, response.json()["code"]) == (503, "nothing_minted")
        assert response.headers["retry-after"]
        assert browser.state["calls"].talks.active == 0


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def refuse(request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"code": "bad", "message": f"secret of Azure {EPHEMERAL}"}}, status=400)


async def redirect(request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": "/elsewhere"})


async def no_sdp(request: web.Request) -> web.StreamResponse:
    return web.json_response({}, status=201)


async def huge(request: web.Request) -> web.StreamResponse:
    return web.Response(status=201, text="v=0\r\n" + "a" * 1_000_000)


@pytest.mark.parametrize(("fault", "status"), [(hang, 504), (refuse, 502), (redirect, 502), (no_sdp, 502), (huge, 502)])
@retry_if_host_busy()
async def test_failed_offer_answers_within_budget(fault: Handler, status: int, tmp_path: Path) -> None:
    budget_s = 1.5
    async with calls_azure() as azure, caller(azure, tmp_path, token_budget_s=budget_s) as browser:
        azure.take_offer = fault
        began = time.monotonic()
        response = await browser.offer(uuid7())
        assert time.monotonic() - began < budget_s + 0.25
        assert response.status_code == status
        assert "secret of Azure" not in response.text
        assert EPHEMERAL not in response.text
        assert browser.state["calls"].talks.active == 0


async def test_calls_count_as_talks_and_requests(tmp_path: Path) -> None:
    limits = {"max_sessions_per_principal": 2, "rate_limit_per_minute": 4}
    async with calls_azure() as azure, caller(azure, tmp_path, **limits) as browser:
        azure_ids = iter(range(10))

        async def number(request: web.Request) -> web.StreamResponse:
            return web.Response(status=201, text=ANSWER, headers={"Location": f"/calls/rtc_{next(azure_ids)}"})

        azure.take_offer = number
        session = uuid7()
        first, second, third = [await browser.offer(each) for each in (session, uuid7(), uuid7())]
        assert [first.status_code, second.status_code, third.status_code] == [201, 201, 429]
        assert third.json()["code"] == "too_many_sessions"
        await browser.hang_up(first.headers["location"], session)
        assert (await browser.offer(uuid7())).status_code == 201
        limited = await browser.offer(session)
        assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
        assert limited.headers["retry-after"]


# --- repeated hang-ups


async def hang_up_at_endpoint(browser: Caller, location: str, session_id: str) -> httpx.Response:
    """The same at the compatible endpoint, whose calls have the same ids."""
    path = f"/v1/realtime/calls/{location.rpartition('/')[2]}/hangup"
    return await browser.client.post(path, headers={"api-key": browser.token(session_id)})


WAYS: dict[str, tuple[Callable[[Caller, str, str], Awaitable[httpx.Response]], int]] = {
    "proxy": (Caller.hang_up, 204),
    "compatible": (hang_up_at_endpoint, 200),
}


@pytest.mark.parametrize("way", WAYS)
async def test_repeated_hang_up_reaches_azure_once(way: str, tmp_path: Path) -> None:
    hang_up, done = WAYS[way]
    async with calls_azure() as azure, caller(azure, tmp_path, rate_limit_per_minute=0) as browser:
        session = uuid7()
        location = (await browser.offer(session)).headers["location"]
        at_once = await asyncio.gather(*[hang_up(browser, location, session) for _ in range(20)])
        later = [await hang_up(browser, location, session) for _ in range(20)]
        assert {response.status_code for response in (*at_once, *later)} == {done}
        assert azure.hung_up == [("rtc_abc", KEY)]


async def test_unsuccessful_hang_up_can_be_repeated(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        session = uuid7()
        location = (await browser.offer(session)).headers["location"]
        azure.hang_up_status = 500
        assert [(await browser.hang_up(location, session)).status_code for _ in range(2)] == [502, 502]
        azure.hang_up_status = 200
        assert [(await browser.hang_up(location, session)).status_code for _ in range(2)] == [204, 204]
        assert len(azure.hung_up) == 3


async def test_reused_call_id_is_hung_up_again(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        session = uuid7()
        for _ in range(2):
            location = (await browser.offer(session)).headers["location"]
            assert (await browser.hang_up(location, session)).status_code == 204
        assert len(azure.hung_up) == 2


async def test_leaving_client_cancels_no_hang_up(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        location = (await browser.offer(session := uuid7())).headers["location"]
        calls = browser.state["calls"].calls
        first = asyncio.create_task(calls.hang_up(azure.url, "rtc_abc"))
        second = asyncio.create_task(browser.hang_up(location, session))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).status_code == 204
        assert len(azure.hung_up) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_hang_ups_have_own_rate_limit(way: str, tmp_path: Path) -> None:
    hang_up, _ = WAYS[way]
    async with calls_azure() as azure, caller(azure, tmp_path, rate_limit_per_minute=4) as browser:
        session = uuid7()
        location = (await browser.offer(session)).headers["location"]
        azure.hang_up_status = 500
        assert [(await hang_up(browser, location, session)).status_code for _ in range(4)] == [502] * 4
        limited = await hang_up(browser, location, session)
        assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
        assert limited.headers["retry-after"]
        assert len(azure.hung_up) == 4
        assert (await browser.offer(session)).status_code == 201, "offers are counted apart"


async def test_remembered_ended_calls_are_bounded() -> None:
    now_s = 1000.0
    over = EndedCalls(clock=lambda: now_s)
    for number in range(20_000):
        over.add(("https://x", f"rtc_{number}"))
    assert len(over) == 10_000
    assert ("https://x", "rtc_19999") in over
    assert ("https://x", "rtc_9999") not in over
    now_s += 299
    assert ("https://x", "rtc_19999") in over
    assert ("https://y", "rtc_19999") not in over
    now_s += 2
    assert ("https://x", "rtc_19999") not in over
    over.add(("https://x", "rtc_new"))
    assert len(over) == 1
    over.discard(("https://x", "rtc_new"))
    assert ("https://x", "rtc_new") not in over


async def test_newer_call_replaces_the_older(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path, token_budget_s=20.0) as browser:
        azure_ids = iter(range(10))

        async def number(request: web.Request) -> web.StreamResponse:
            return web.Response(status=201, text=ANSWER, headers={"Location": f"/calls/rtc_{next(azure_ids)}"})

        azure.take_offer = number
        session, other = uuid7(), uuid7()
        old = (await browser.offer(session)).headers["location"]
        await browser.offer(other)
        new = (await browser.offer(session)).headers["location"]

        async def replaced() -> bool:
            return [call for call, _ in azure.hung_up] == ["rtc_0"] and browser.state["calls"].talks.active == 2

        await eventually(replaced)
        assert (await browser.hang_up(old, session)).status_code == 204, "late, and of the older alone"
        assert browser.state["calls"].talks.active == 2
        assert (await browser.hang_up(new, session)).status_code == 204
        assert [call for call, _ in azure.hung_up] == ["rtc_0", "rtc_2"]


# --- calls without a client


async def settled(browser: Caller, azure: CallsAzure, *calls: str) -> None:
    """These calls were hung up, and no place is held."""

    async def so() -> bool:
        return [call for call, _ in azure.hung_up] == list(calls) and not browser.state["calls"].talks.active

    await eventually(so)


async def named_then_blocked(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        status=201, headers={"Location": "/v1/realtime/calls/rtc_cut", "Content-Length": "500"}
    )
    await response.prepare(request)
    await response.write(b"v=0\r\n")
    assert request.transport is not None
    request.transport.abort()
    return response


async def named_then_hangs(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        status=201, headers={"Location": "/v1/realtime/calls/rtc_cut", "Content-Length": "500"}
    )
    await response.prepare(request)
    await asyncio.sleep(30)
    return response


async def named_and_no_sdp(request: web.Request) -> web.StreamResponse:
    return web.json_response({}, status=201, headers={"Location": "/v1/realtime/calls/rtc_cut"})


async def named_and_huge(request: web.Request) -> web.StreamResponse:
    headers = {"Location": "/v1/realtime/calls/rtc_cut"}
    return web.Response(status=201, text="v=0\r\n" + "a" * 1_000_000, headers=headers)


@pytest.mark.parametrize(
    ("fault", "status"),
    [(named_then_blocked, 502), (named_then_hangs, 504), (named_and_no_sdp, 502), (named_and_huge, 502)],
)
async def test_unusable_answer_hangs_up_and_frees_place(fault: Handler, status: int, tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path, token_budget_s=1.0) as browser:
        azure.take_offer = fault
        assert (await browser.offer(uuid7())).status_code == status
        await settled(browser, azure, "rtc_cut")


async def test_call_is_known_with_azures_headers(tmp_path: Path) -> None:
    """Should the broker die before the answer's body has come, another one hangs the call up by its row."""
    cut = asyncio.Event()

    async def named_alone(request: web.Request) -> web.StreamResponse:
        headers = {"Location": "/v1/realtime/calls/rtc_cut", "Content-Length": "500"}
        response = web.StreamResponse(status=201, headers=headers)
        await response.prepare(request)
        await cut.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        azure.take_offer = named_alone
        session = uuid7()
        offering = asyncio.create_task(browser.offer(session))

        async def is_stored() -> bool:
            owner, claims = Owner(session, "anonymous", 1), browser.state["calls"].claims
            return bool(await claims.endpoint_of("rtc_cut", owner) == azure.url)

        await eventually(is_stored)
        assert not offering.done()
        cut.set()
        assert (await offering).status_code == 502
        await settled(browser, azure, "rtc_cut")


class HeldDatabase:
    """A database that writes when it is let."""

    def __init__(self, database: Database, let: asyncio.Event) -> None:
        self.dialect = database.dialect
        self.asked = asyncio.Event()
        self._database, self._let = database, let

    async def write(self, work: Callable[..., object]) -> object:
        self.asked.set()
        await self._let.wait()
        return await self._database.write(work)


async def test_answer_waits_for_the_calls_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the broker die from then on, another one takes the call."""
    monkeypatch.setattr("token_broker.calls.leases._STORED_S", 300)
    let = asyncio.Event()
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        relay = browser.state["calls"]
        leases = relay.calls._leases
        async with asyncio.timeout(30):
            await leases.refresh()
            held = leases._database = HeldDatabase(leases._database, let)
            session = uuid7()
            offering = asyncio.create_task(browser.offer(session))
            await held.asked.wait()
            assert azure.offers
            assert not offering.done()
            let.set()
            assert (await offering).status_code == 201
            assert await relay.claims.endpoint_of("rtc_abc", Owner(session, "anonymous", 1)) == azure.url


async def test_call_that_is_given_up_before_its_row_is_hung_up(tmp_path: Path) -> None:
    async def fail(_name: object) -> None:
        raise RuntimeError

    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        browser.state["calls"].calls._leases.stored = fail
        assert (await browser.offer(uuid7())).status_code == 500
        await settled(browser, azure, "rtc_abc")


async def test_answer_waits_for_no_sideband(tmp_path: Path) -> None:
    joining, let = asyncio.Event(), asyncio.Event()

    async def join(_: web.Request) -> web.StreamResponse:
        joining.set()
        await let.wait()
        return web.Response(status=404)

    async with calls_azure(join) as azure, caller(azure, tmp_path) as browser:
        assert (await browser.offer(uuid7())).status_code == 201
        await asyncio.wait_for(joining.wait(), 15)
        let.set()


async def refused_and_named(request: web.Request) -> web.StreamResponse:
    return web.json_response({}, status=400, headers={"Location": "/v1/realtime/calls/rtc_other"})


async def test_refusal_leaves_no_call(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        azure.take_offer = refused_and_named
        assert (await browser.offer(uuid7())).status_code == 502
        await asyncio.sleep(0.1)
        await settled(browser, azure)


@dataclass
class HeldOffer:
    """Answers an offer only once `go` is set; with `is_named` the call's name comes before."""

    is_named: bool = False
    came: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=201, headers={"Location": "/v1/realtime/calls/rtc_abc"})
        if self.is_named:
            await response.prepare(request)
        self.came.set()
        await self.go.wait()
        await response.prepare(request)
        await response.write(ANSWER.encode())
        return response


def offer_as_bytes(browser: Caller, session_id: str) -> bytes:
    head = [
        f"POST /realtime/calls?session_id={session_id} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/sdp",
        f"Authorization: Bearer {browser.token(session_id)}",
        f"Content-Length: {len(OFFER)}",
    ]
    return ("\r\n".join(head) + "\r\n\r\n" + OFFER).encode()


@pytest.mark.parametrize("is_named", [False, True])
async def test_leaving_before_answer_frees_place(is_named: bool, tmp_path: Path) -> None:
    held = HeldOffer(is_named)
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        azure.take_offer = held.take
        reader, writer = await asyncio.open_connection("127.0.0.1", browser.client.base_url.port)
        writer.write(offer_as_bytes(browser, uuid7()))
        await held.came.wait()
        assert browser.state["calls"].talks.active == 1
        writer.transport.abort()
        await asyncio.sleep(0.1)
        held.go.set()
        await settled(browser, azure, "rtc_abc")
        assert await reader.read(1) == b""


async def test_block_during_offer_hangs_up(tmp_path: Path) -> None:
    held = HeldOffer()
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        azure.take_offer = held.take
        session = uuid7()
        offering = asyncio.create_task(browser.offer(session))
        await held.came.wait()
        browser.state["memory"].blocklist._sessions = frozenset({session})
        held.go.set()
        refused = await offering
        assert (refused.status_code, refused.json()["code"]) == (403, "blocked")
        await settled(browser, azure, "rtc_abc")


async def test_undeliverable_answer_ends_call(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        calls = browser.state["calls"]
        owner = Owner(uuid7(), "anonymous", 1)
        lease = calls.talks.acquire("anonymous")
        lease.keep("rtc_abc", for_s=60)
        agent = next(iter(calls.minting.agents.values()))
        spec = session_spec(agent, calls.minting.settings)
        call = PlacedCall(b"v=0", azure.url, "rtc_abc", "token", spec, owner, agent)

        async def receive() -> Any:
            raise AssertionError

        async def fails(message: Any) -> None:
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await calls.answer(call, {})({"type": "http"}, receive, fails)
        await settled(browser, azure, "rtc_abc")


async def test_hang_up_is_retried_until_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.running_calls._FIRST_PAUSE_S", 0.02)
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        azure.take_offer = named_and_no_sdp
        azure.hang_up_status = 503
        assert (await browser.offer(uuid7())).status_code == 502

        async def refused_often() -> bool:
            return len(azure.hung_up) >= 4

        await eventually(refused_often)
        azure.hang_up_status = 200

        async def done() -> bool:
            return not browser.state["calls"].calls._ending

        await eventually(done)
        assert {call for call, _ in azure.hung_up} == {"rtc_cut"}


async def test_failed_offers_hold_no_place(tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path, max_sessions_per_principal=2) as browser:
        for fault in (refuse, named_and_no_sdp, redirect, named_then_blocked, no_sdp) * 2:
            azure.take_offer = fault
            assert (await browser.offer(uuid7())).status_code == 502
        azure.take_offer = None
        assert (await browser.offer(uuid7())).status_code == 201
        assert browser.state["calls"].talks.active == 1
