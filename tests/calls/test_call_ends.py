"""Each end of a call is Azure's to make: the call is hung up until Azure has done it, and its place comes back."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from pydantic import SecretStr
from sqlalchemy import select
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from strategies.credentials import Credentials
from strategies.errors import MintError
from tests.calls.test_relayed_calls import caller, calls_azure, settled
from tests.calls.test_sideband import call, listen, no_such_call, tell_and_end
from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.broker import KEY, Running, broker
from tests.support.waiting import eventually
from tests.usage.support import Hands, tokens
from token_broker.calls.call_row import DELIVERED, MADE, CallRow, TakenCall
from token_broker.calls.running_calls import Calls
from token_broker.memory.store import tables
from token_broker.relay.watchdog import BUDGET_USED
from token_broker.security.limits import SessionLimits
from token_broker.security.tokens import Owner
from token_broker.server.drain import GOING_AWAY
from token_broker.sessions.plans import session_spec
from token_broker.usage.budgets import EndTalk
from token_broker.usage.ledger import UsageLedger
from token_broker.usage.talk_usage import TalkUsage
from token_broker.web.requests import uuid7


def ends_of(running: Running, *, went_on: bool = True) -> list[str]:
    """The reasons for which calls are hung up; each is over at once, or has been before."""
    reasons: list[str] = []

    def hang_up(endpoint: str, call_id: str, owner: Owner, *, why: str) -> None:
        reasons.append(why)
        running.limits.end(call_id)
        running.calls.ended_at_azure(call_id, went_on)

    running.calls._hang_up = hang_up
    return reasons


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"max_talk_s": 1}, "the talk has reached its longest time"),
        ({"call_idle_s": 0.4}, "nobody said anything any more"),
    ],
)
async def test_limit_hangs_up(limits: dict[str, Any], why: str) -> None:
    async def script(talk: AzureTalk) -> None:
        await talk.hear("item_1", "Hello?")
        await talk.connection.wait_closed()

    async with call(script) as azure, broker(azure.url, **limits) as running:
        ends = ends_of(running)
        listen(running, azure)
        await running.quiet()
        assert ends == [why], "once"
        assert running.ingest.said == [("user", "Hello?")]


async def test_blocked_callers_call_is_hung_up() -> None:
    async def script(talk: AzureTalk) -> None:
        await talk.hear("item_1", "Hello?")
        await talk.connection.wait_closed()

    async with call(script) as azure, broker(azure.url) as running:
        ends = ends_of(running)
        session_id = listen(running, azure)
        await running.ingest.reach(1)
        running.calls.end_where(lambda _principal, session: session == uuid7())
        assert ends == []
        running.calls.end_where(lambda _principal, session: session == session_id)
        await running.quiet()
        assert ends == ["the operator has blocked its session or its user"]


async def test_hang_up_is_repeated_while_call_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure answers 200, and the call goes on."""
    monkeypatch.setattr("token_broker.calls.running_calls._FIRST_CHECK_S", 0.05)
    joins = 0

    async def join(request: web.Request) -> web.StreamResponse:
        nonlocal joins
        joins += 1
        if len(azure.hung_up) >= 3:
            return web.Response(status=404)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            pass
        return socket

    async with calls_azure(join) as azure, caller(azure, tmp_path) as browser:
        session = uuid7()
        location = (await browser.offer(session)).headers["location"]
        assert (await browser.hang_up(location, session)).status_code == 204
        assert browser.state["calls"].talks.active == 0

        async def checked() -> bool:
            return not browser.state["calls"].calls._checking

        await eventually(checked)
        assert [name for name, _ in azure.hung_up] == ["rtc_abc"] * 3


@pytest.mark.parametrize("status", [404, 409, 410])
async def test_refused_hang_up_says_call_is_over(status: int, tmp_path: Path) -> None:
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        session = uuid7()
        location = (await browser.offer(session)).headers["location"]
        azure.hang_up_status = status
        assert (await browser.hang_up(location, session)).status_code == 204
        assert not browser.state["calls"].calls._checking
        await settled(browser, azure, "rtc_abc")


async def test_used_up_budget_hangs_up() -> None:
    class UsedUp:
        """A budget of which nothing is left soon."""

        async def hold(self, usage: TalkUsage, key: str, *, warn: Callable[[], None], end: EndTalk) -> None:
            held.append((usage.transport, key))
            warn()
            end(0.05, False)

    async def script(talk: AzureTalk) -> None:
        await talk.hear("item_1", "Hello?")
        await talk.connection.wait_closed()

    held: list[tuple[str, str]] = []
    async with call(script) as azure, broker(azure.url) as running:
        running.calls._leash = UsedUp()
        ends = ends_of(running)
        listen(running, azure)
        await running.quiet()
        assert ends == [BUDGET_USED.reason]
        assert held == [("webrtc_relay", "anonymous")]


@pytest.mark.parametrize("way", ["budget", "block"])
async def test_budgets_end_waits_for_the_playout(way: str) -> None:
    """What is being said is heard to its end; a block waits for nothing."""

    class UsedUp:
        async def hold(self, usage: TalkUsage, key: str, *, warn: Callable[[], None], end: EndTalk) -> None:
            del usage, key, warn
            await running.ingest.reach(1)
            end(600.0, False)
            used_up.set()

    async def script(talk: AzureTalk) -> None:
        await talk.send({"type": "response.created", "response": {"id": "resp_1"}})
        await talk.send({"type": "output_audio_buffer.started", "response_id": "resp_1"})
        await talk.hear("item_1", "Hello?")
        await used_up.wait()
        await talk.say("item_a", "Good evening.", response_id="resp_1")
        await talk.hear("item_2", "Good.")
        await running.ingest.reach(2)
        assert ends == [], "it is being played"
        if way == "block":
            running.calls.end_where(lambda _principal, _session: True)
        else:
            await talk.send({"type": "output_audio_buffer.stopped", "response_id": "resp_1"})
        await talk.connection.wait_closed()

    used_up = asyncio.Event()
    async with call(script) as azure, broker(azure.url) as running:
        running.calls._leash = UsedUp()
        ends = ends_of(running)
        listen(running, azure)
        await running.quiet()
        assert ends == [BUDGET_USED.reason if way == "budget" else "the operator has blocked its session or its user"]


async def test_taken_call_has_what_is_left() -> None:
    """The limits of a call go on where another process left them, `max_session_s` among them."""

    async def script(talk: AzureTalk) -> None:
        await talk.connection.wait_closed()

    async with call(script) as azure, broker(azure.url) as running:
        ends = ends_of(running)
        owner = Owner(uuid7(), "anonymous", 1, talk_id=uuid7())
        about = {"endpoint": azure.url, "call_id": "rtc_1", "resource": "default", "transport": "webrtc_relay"}
        row = CallRow(key="key", owner=owner, agent_id="elena", limit_key="anonymous", lasts_s=0.3, **about)
        running.calls.taken(TakenCall(row, DELIVERED, 1, None))
        await running.quiet()
        assert ends == ["the talk has reached its longest time"]


async def test_call_that_a_page_made_is_ended(tmp_path: Path) -> None:
    """A call that was attached: it has its row from then on, and limits end it as any other."""

    async def join(request: web.Request) -> web.StreamResponse:
        if azure.hung_up:
            return web.Response(status=404)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            pass
        return socket

    async with calls_azure(join) as azure, caller(azure, tmp_path, call_idle_s=0.4) as browser:
        relay = browser.state["calls"]
        agent = next(iter(relay.minting.agents.values()))
        relay.talks.acquire("anonymous").keep("rtc_page", for_s=60)
        spec = session_spec(agent, relay.minting.settings)
        about = {"endpoint": azure.url, "call_id": "rtc_page", "resource": "default", "transport": "webrtc"}
        owner = Owner(uuid7(), "anonymous", 1)
        row = CallRow(key="key", owner=owner, agent_id=agent.id, limit_key="anonymous", lasts_s=60, **about)
        assert await relay.claims.claim(row) == "claimed"
        assert await relay.claims.settle(row, verified=True)
        relay.watched.watch(owner, agent, spec=spec, **about)
        await settled(browser, azure, "rtc_page")


# --- what was used, to the moment of the end


def ledger_of(running: Running, hands: Hands) -> UsageLedger:
    ledger = running.calls._ledger = UsageLedger(None, clock=hands.clock)
    return ledger


@pytest.mark.parametrize(
    ("refusals", "seconds"),
    [
        ([404, 404, 404], 10),  # Azure has ended the call, and with it the sideband
        ([503, 404, 404, 404], 10),
        ([404, 503], 30),  # it goes on, as far as anybody knows, and is hung up then
    ],
)
async def test_call_is_counted_until_its_sideband_broke(
    monkeypatch: pytest.MonkeyPatch, refusals: list[int], seconds: int
) -> None:
    monkeypatch.setattr("token_broker.calls.listener._PAUSES_S", (0.01,))

    def refuse(_: Request) -> Response | None:
        if not azure.talks:
            return None
        hands.move(10)
        status = refusals.pop(0)
        if not refusals and status == 503:
            running.limits.end("rtc_1")
        return Response(status, "", Headers(), b"")

    async def script(talk: AzureTalk) -> None:
        await talk.hear("item_1", "Hello?")
        await running.ingest.reach(1)
        hands.move(10)
        await talk.connection.close()

    hands = Hands()
    async with scripted_azure(script) as azure, broker(azure.url) as running:
        azure.refuse = refuse
        ledger = ledger_of(running, hands)
        listen(running, azure)
        await running.quiet()
        (usage,) = ledger._closed
        assert (usage.rows[0].live_us, refusals) == (seconds * 1_000_000, [])
        assert usage.values(usage.rows[0])["complete"] is (seconds == 10)


async def test_store_knows_since_when_a_call_is_unheard(tmp_path: Path) -> None:
    """If its replica dies, who takes it counts until then: it may have ended with its sideband."""
    broke = asyncio.Event()

    async def join(request: web.Request) -> web.StreamResponse:
        if broke.is_set():
            return web.Response(status=503)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await broke.wait()
        return socket

    async with calls_azure(join) as azure, caller(azure, tmp_path) as browser:
        await browser.offer(uuid7())
        leases, database = browser.state["calls"].calls._leases, browser.state["memory"].database

        async def unheard_since_us() -> int | None:
            await leases.refresh()
            found: int | None = await database.read(lambda c: c.scalar(select(tables.calls.c.unheard_since_us)))
            return found

        assert await unheard_since_us() is None
        broke.set()
        assert await eventually(unheard_since_us)


def page_hangs_up(running: Running) -> None:
    running.limits.end("rtc_1")
    running.calls.hung_up("rtc_1")


def limit_hangs_up(running: Running) -> None:
    running.calls.end_where(lambda _principal, _session: True)


def broker_goes_away(running: Running) -> None:
    (listener,) = running.drain.talks
    listener.end(GOING_AWAY)


@pytest.mark.parametrize("hang_up", [page_hangs_up, limit_hangs_up, broker_goes_away])
async def test_answer_that_ended_before_the_hang_up_is_counted(
    hang_up: Callable[[Running], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is on the way as the call is hung up. Time is counted until the hang-up, and no tool is run any more."""
    monkeypatch.setattr("token_broker.calls.listener._LAST_EVENTS_S", 30)

    async def script(talk: AzureTalk) -> None:
        await talk.hear("item_1", "Hello?")
        await running.ingest.reach(1)
        hands.move(10)
        hang_up(running)
        await asyncio.sleep(0.1)
        hands.move(10)
        call = {"type": "function_call", "id": "i", "call_id": "c", "name": "end_talk", "arguments": "{}"}
        await talk.send({"type": "response.output_item.done", "response_id": "resp_1", "item": call})
        await talk.say("item_a", "Good evening.", response_id="resp_1")
        await running.ingest.reach(2)
        assert running.calls.owner_of("rtc_1") is None, "nobody can attach it any more"

    hands = Hands()
    async with scripted_azure(script) as azure, broker(azure.url) as running:
        ledger, ends = ledger_of(running, hands), ends_of(running)
        listen(running, azure)
        await running.quiet()
        (usage,) = ledger._closed
        row = usage.values(usage.rows[0])
        assert (row["live_ms"], row["output_tokens"], row["tools_run"], row["complete"]) == (10_000, 20, 0, True)
        assert len(ends) == (hang_up is not page_hangs_up), "once"
        assert len(azure.talks) == 1


@pytest.mark.parametrize(
    ("about", "is_free", "hung_up"),
    [
        ({"was_heard": True, "age_s": 12.0, "unheard_s": 8.0, "lost_s": 6.0}, True, []),
        ({"age_s": 31.0}, True, ["its client never connected"]),  # it may not have been heard, and it may be there
        ({"age_s": 12.0}, False, []),
    ],
)
async def test_taken_call_that_is_over_frees_its_place(
    monkeypatch: pytest.MonkeyPatch, about: dict[str, Any], *, is_free: bool, hung_up: list[str]
) -> None:
    """It ended after its holder was killed: Azure does not know it any more, and not "not yet"."""
    monkeypatch.setattr("token_broker.calls.listener._PAUSES_S", (0.01,))
    hands = Hands()
    async with scripted_azure(tell_and_end) as azure, broker(azure.url) as running:
        azure.refuse = no_such_call
        ledger, ends = ledger_of(running, hands), ends_of(running)
        name = {"endpoint": azure.url, "call_id": "rtc_1", "resource": "default", "transport": "webrtc_relay"}
        owner = Owner(uuid7(), "anonymous", 1, talk_id=uuid7())
        row = CallRow(key="key", owner=owner, agent_id="elena", limit_key="anonymous", lasts_s=600, **name)
        running.calls.taken(TakenCall(row, DELIVERED, 1, None, **about))

        async def asked_often() -> bool:
            return len(azure.handshakes) >= 5 or not running.limits.active

        await eventually(asked_often)
        assert (not running.limits.active, ends) == (is_free, hung_up)
        running.limits.end("rtc_1")
        await running.quiet()
        (usage,) = ledger._closed
        assert usage.rows[0].live_us == (2_000_000 if "unheard_s" in about else None), "until its holder was lost"


@pytest.mark.parametrize(
    ("state", "went_on", "seconds", "ended"),
    [
        (DELIVERED, True, 8, "idle"),  # its holder died as it hung up
        (DELIVERED, False, 2, "idle"),  # Azure had done it: nobody knows since when
        (MADE, True, 8, "lost"),  # its sideband was there before its answer was delivered
    ],
)
async def test_taken_call_that_is_to_end_has_its_row(state: int, went_on: bool, seconds: int, ended: str) -> None:
    async with scripted_azure(tell_and_end) as azure, broker(azure.url) as running:
        azure.refuse = no_such_call
        ledger, ends = ledger_of(running, Hands()), ends_of(running, went_on=went_on)
        name = {"endpoint": azure.url, "call_id": "rtc_1", "resource": "default", "transport": "webrtc_relay"}
        owner = Owner(uuid7(), "anonymous", 1, talk_id=uuid7())
        row = CallRow(key="key", owner=owner, agent_id="elena", limit_key="anonymous", lasts_s=600, **name)
        wanted = ended if state == DELIVERED else None
        about: dict[str, Any] = {"age_s": 20.0, "unheard_s": 8.0, "lost_s": 6.0}
        running.calls.taken(TakenCall(row, state, 1, wanted, was_heard=True, **about))

        async def is_closed() -> bool:
            return bool(ledger._closed)

        await eventually(is_closed)
        await running.quiet()
        values = ledger._closed[0].values(ledger._closed[0].rows[0])
        assert (values["live_ms"], values["ended"], values["complete"]) == (seconds * 1000, ended, False)
        assert len(ends) == 1


@pytest.mark.parametrize(("ends", "answers"), [(True, ["Good evening."]), (False, [])])
async def test_answer_while_the_call_moves_is_kept_whole(
    ends: bool, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new holder may be joining yet. What is not finished by then that one hears, so no half of it is kept here."""
    monkeypatch.setattr("token_broker.calls.listener._LAST_EVENTS_S", 300 if ends else 0.05)

    async def script(talk: AzureTalk) -> None:
        await talk.hear("item_1", "Hello?")
        await talk.send({"type": "response.created", "response": {"id": "resp_1"}})
        about = {"response_id": "resp_1", "item_id": "item_a", "content_index": 0, "delta": "Good"}
        await talk.send({"type": "response.output_audio_transcript.delta", **about})
        await running.ingest.reach(1)
        hands.move(10)
        running.calls.lost((azure.url, "rtc_1"))
        hands.move(10)
        if ends:
            await talk.say("item_a", "Good evening.", response_id="resp_1")
            await running.ingest.reach(2)
        else:
            await talk.connection.wait_closed()

    hands = Hands()
    async with scripted_azure(script) as azure, broker(azure.url) as running:
        ledger = ledger_of(running, hands)
        listen(running, azure)
        await running.quiet()
        assert [content for role, content in running.ingest.said if role == "assistant"] == answers
        (usage,) = ledger._closed
        row = usage.values(usage.rows[0])
        assert (row["ended"], row["live_ms"], row["responses"]) == ("moved", 10_000, len(answers))


async def test_call_that_is_lost_and_taken_again_is_heard_on() -> None:
    """The store was slow, and nobody else took it. Its time counts once, and its page reads on."""

    async def script(talk: AzureTalk) -> None:
        await talk.hear(f"item_{len(azure.talks)}", "Hello?")
        await talk.connection.wait_closed()

    hands = Hands()
    async with scripted_azure(script) as azure, broker(azure.url) as running:
        ledger = ledger_of(running, hands)
        session_id = listen(running, azure, talk_id="talk_1")
        await running.ingest.reach(1)
        page = running.calls.streams.of(session_id, "rtc_1")
        hands.move(10)
        about = {"endpoint": azure.url, "call_id": "rtc_1", "resource": "default", "transport": "webrtc_relay"}
        owner = Owner(session_id, "anonymous", 5, talk_id="talk_1")
        row = CallRow(key="key", owner=owner, agent_id="elena", limit_key="anonymous", lasts_s=600, **about)
        running.calls.lost(row.name)
        running.calls.taken(TakenCall(row, DELIVERED, 1, None, age_s=10, was_heard=True, unheard_s=0.0))
        await running.ingest.reach(2)
        assert (page.is_closed, page.is_attached, running.limits.keeps("rtc_1")) == (False, True, True)
        hands.move(5)
        running.limits.end("rtc_1")
        await running.quiet()
        counted = [(usage.ended, usage.rows[0].live_us) for usage in ledger._closed]
        assert counted == [("moved", 10_000_000), ("lost", 5_000_000)]


@pytest.mark.parametrize(("went_on", "seconds"), [(True, 30), (False, 10)])
async def test_taken_call_counts_from_its_answer(went_on: bool, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder was killed before it had written anything. Azure's 404 says that nobody had connected so far."""
    monkeypatch.setattr("token_broker.calls.listener._PAUSES_S", (0.01,))

    def refuse(request: Request) -> Response | None:
        return None if went_on or len(azure.handshakes) > 1 else no_such_call(request)

    async def script(talk: AzureTalk) -> None:
        await talk.hear("item_1", "Hello?")
        await talk.connection.wait_closed()

    hands = Hands()
    async with scripted_azure(script) as azure, broker(azure.url) as running:
        azure.refuse = refuse
        ledger = ledger_of(running, hands)
        about = {"endpoint": azure.url, "call_id": "rtc_1", "resource": "default", "transport": "webrtc_relay"}
        owner = Owner(uuid7(), "anonymous", 1, talk_id=uuid7())
        row = CallRow(key="key", owner=owner, agent_id="elena", limit_key="anonymous", lasts_s=600, **about)
        running.calls.taken(TakenCall(row, DELIVERED, 1, None, age_s=20.0, lost_s=6.0))
        await running.ingest.reach(1)
        hands.move(10)
        running.limits.end("rtc_1")
        await running.quiet()
        values = ledger._closed[0].values(ledger._closed[0].rows[0])
        assert values["live_ms"] >= seconds * 1000 if went_on else values["live_ms"] == seconds * 1000
        assert values["complete"] is not went_on


async def test_taken_call_that_is_counted_is_hung_up_alone() -> None:
    """Its holder hung it up, closed its rows, and died before it noted that the call is over."""
    async with scripted_azure(tell_and_end) as azure, broker(azure.url) as running:
        ledger, ends = ledger_of(running, Hands()), ends_of(running)
        about = {"endpoint": azure.url, "call_id": "rtc_1", "resource": "default", "transport": "webrtc_relay"}
        owner = Owner(uuid7(), "anonymous", 1, talk_id=uuid7())
        row = CallRow(key="key", owner=owner, agent_id="elena", limit_key="anonymous", lasts_s=600, **about)
        running.calls.taken(TakenCall(row, DELIVERED, 1, "budget", is_counted=True))
        await running.quiet()
        assert (ends, list(ledger._closed), azure.handshakes) == ([BUDGET_USED.reason], [], [])


async def test_undelivered_call_is_hung_up_unheard() -> None:
    """Its replica died between Azure's headers and its client's answer."""
    async with scripted_azure(tell_and_end) as azure, broker(azure.url) as running:
        ledger, ends = ledger_of(running, Hands()), ends_of(running)
        about = {"endpoint": azure.url, "call_id": "rtc_1", "resource": "default", "transport": "webrtc_relay"}
        owner = Owner(uuid7(), "anonymous", 1)
        row = CallRow(key="key", owner=owner, agent_id="elena", limit_key="anonymous", lasts_s=600, **about)
        running.calls.taken(TakenCall(row, MADE, 1, None))
        assert ends == ["its client never had its answer"]
        await running.quiet()
        assert azure.handshakes == []
        (usage,) = ledger._closed
        values = usage.values(usage.rows[0])
        assert (values["seen"], values["live_ms"], values["ended"]) == (False, None, "lost")


@pytest.mark.slow
async def test_answer_counts_once_and_outside_the_conversation_too() -> None:
    async def script(talk: AzureTalk) -> None:
        outside: dict[str, Any] = {"id": "resp_o", "conversation_id": None, "status": "completed", "output": []}
        await talk.send({"type": "response.created", "response": outside})
        for _ in range(2):
            await talk.send({"type": "response.done", "response": {**outside, "usage": tokens()}})
        await talk.hear("item_1", "Hello?")

    async with call(script) as azure, broker(azure.url) as running:
        ledger = ledger_of(running, Hands())
        listen(running, azure)
        await running.quiet()
        (usage,) = ledger._closed
        assert (usage.rows[0].responses, usage.rows[0].counts["output_tokens"]) == (1, 22)
        assert running.ingest.said == [("user", "Hello?")], "it is no turn"


async def test_call_is_ended_at_its_own_host() -> None:
    """Another resource knows no such call, and its 404 would say that it is over; five refusals are no end."""
    async with calls_azure() as one, calls_azure() as other, httpx.AsyncClient() as http:
        key, limits = Credentials(key=SecretStr(KEY), entra=None), SessionLimits(per_key=0, total=0)

        async def goes_on(_endpoint: str, _call_id: str) -> bool:
            return False

        at = {one.url: key, other.url: key}
        calls = Calls(http, at, limits, max_talk_s=60, hang_up_timeout_s=30, goes_on=goes_on)
        limits.hold("anonymous", "rtc_1", for_s=60)
        one.hang_up_status, other.hang_up_status = 404, 500
        for _ in range(5):
            with pytest.raises(MintError):
                await calls.hang_up(other.url, "rtc_1")
        assert limits.keeps("rtc_1")
        other.hang_up_status = 200
        await calls.hang_up(other.url, "rtc_1")
        assert not limits.active
        assert (one.hung_up, other.hung_up) == ([], [("rtc_1", KEY)] * 6)
        await calls.aclose()


async def test_taken_call_that_was_hung_up_here_frees_its_place(tmp_path: Path) -> None:
    """Its page hung up at this replica; its holder died before it saw that."""
    async with calls_azure() as azure, caller(azure, tmp_path) as browser:
        relay = browser.state["calls"]
        location = (await browser.offer(session := uuid7())).headers["location"]
        assert (await browser.hang_up(location, session)).status_code == 204
        about = {"endpoint": azure.url, "call_id": "rtc_abc", "resource": "default", "transport": "webrtc_relay"}
        owner, agent = Owner(session, "anonymous", 1), next(iter(relay.minting.agents.values()))
        row = CallRow(key="key", owner=owner, agent_id=agent.id, limit_key="anonymous", lasts_s=60, **about)
        relay.watched.taken(TakenCall(row, DELIVERED, 1, "hung_up"))
        await settled(browser, azure, "rtc_abc")
