"""Calls that pages set up at Azure by themselves: attached where they are the plan's own, else left as they were."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from tests.relay.support.azure import AzureTalk, ScriptedAzure, scripted_azure
from tests.simulator.phone import Phone
from tests.simulator.support import silence, speech
from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.waiting import eventually
from token_broker.memory.store_errors import StoreAwayError
from token_broker.security.tokens import MintedSession, Owner
from token_broker.simulator import SimulatorConfig, serve
from token_broker.web.requests import uuid7

NOTHING = {"type": "session.update", "event_id": "broker_attach", "session": {"type": "realtime"}}
MALFORMED: list[Any] = [
    "",
    "rtc_x?model=gpt-realtime",
    "..",
    "../rtc_x",
    "rtc_x/hangup",
    "rtc x",
    "rtc_x\n",
    "rtc_ä",
    "x" * 201,
    "x" * 4096,
    ["rtc_x"],
    {"id": "rtc_x"},
    7,
    None,
    True,
]


class Attaching:
    """A broker, and a page of one session that names calls to it."""

    def __init__(self, broker: RunningBroker, azure: ScriptedAzure) -> None:
        self.broker = broker
        self.azure = azure

    @property
    def joins(self) -> int:
        """How often Azure was asked for a call's sideband."""
        return sum("call_id=" in each.path for each in self.azure.handshakes)

    def headers(self, session_id: str, *, azure_id: str | None = "sess_1") -> dict[str, str]:
        minted = None if azure_id is None else MintedSession(azure_id, self.azure.url, "default")
        owner = Owner(session_id, "anonymous", 1, talk_id=uuid7())
        token = self.broker.signer.session_token(owner, ttl_s=60, agent_id="elena", minted=minted)
        return {"Authorization": f"Bearer {token}"}

    async def attach(self, session_id: str, call_id: Any, *, azure_id: str | None = "sess_1") -> httpx.Response:
        headers = self.headers(session_id, azure_id=azure_id)
        body = {"session_id": session_id, "call_id": call_id}
        return await self.broker.client.post("/realtime/calls/attach", json=body, headers=headers)

    async def events(self, session_id: str, shown_id: str, until: str) -> list[dict[str, Any]]:
        """The call's events, to the first of that type."""
        got: list[dict[str, Any]] = []
        path = f"/realtime/calls/{shown_id}/events"
        async with asyncio.timeout(15):
            async with self.broker.client.stream("GET", path, headers=self.headers(session_id)) as answer:
                assert answer.status_code == HTTPStatus.OK
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        got.append(json.loads(line[6:]))
                        if got[-1]["type"] == until:
                            return got
        raise AssertionError(got)

    async def attached(self, session_id: str, call_id: str) -> str:
        answer = await self.attach(session_id, call_id)
        assert answer.status_code == HTTPStatus.ACCEPTED, answer.text
        shown_id: str = answer.json()["call_id"]
        assert [each["type"] for each in await self.events(session_id, shown_id, "broker.attached")] == [
            "broker.attached"
        ]
        return shown_id

    async def refused(self, session_id: str, call_id: Any, *, azure_id: str | None = "sess_1") -> None:
        """The call is refused at once, and Azure is asked nothing."""
        asked = self.joins
        answer = await self.attach(session_id, call_id, azure_id=azure_id)
        assert (answer.status_code, answer.json()["code"]) == (403, "call_refused"), call_id
        assert self.joins == asked


async def sideband(talk: AzureTalk) -> None:
    """The sideband of a call whose session is `sess_1`: silent until it is told something."""
    async for message in talk.connection:
        talk.arrived(message)
        if talk.received[-1]["type"] == "session.update":
            session = talk.received[-1]["session"]
            await talk.send({"type": "session.updated", "session": {"id": "sess_1", **session}})


@asynccontextmanager
async def attaching(tmp_path: Path, **overrides: Any) -> AsyncIterator[Attaching]:
    async with scripted_azure(sideband) as azure:
        fixed = {"endpoint_kind": "direct", "rate_limit_per_minute": 600, "store_timeout_s": 30}
        settings = make_settings(tmp_path, azure.url, **(fixed | overrides))
        async with run_broker(settings) as broker:
            yield Attaching(broker, azure)


async def test_malformed_ids_are_refused_at_once(tmp_path: Path) -> None:
    async with attaching(tmp_path) as page:
        for call_id in MALFORMED:
            await page.refused(uuid7(), call_id)
        answer = await page.broker.client.post("/realtime/calls/attach", json=["rtc_1"], headers=page.headers(uuid7()))
        assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
        assert page.joins == 0


async def test_own_call_is_attached_once(tmp_path: Path) -> None:
    async with attaching(tmp_path) as page:
        session_id = uuid7()
        await page.attached(session_id, "rtc_1")
        talk = await page.azure.talk()
        await talk.next_event("session.update", nth=2)
        assert talk.path == "/openai/v1/realtime?call_id=rtc_1"
        assert talk.received[0] == NOTHING
        assert talk.received[1]["session"]["instructions"]
        answers = [await page.attach(session_id, "rtc_1") for _ in range(3)]
        assert {each.status_code for each in answers} == {HTTPStatus.ACCEPTED}
        assert len(page.azure.talks) == 1
        assert page.broker.talks.active == 1
        await page.refused(uuid7(), "rtc_1")  # another session's


async def test_foreign_call_is_left_alone(tmp_path: Path) -> None:
    async with attaching(tmp_path) as page:
        session_id = uuid7()
        answer = await page.attach(session_id, "rtc_1", azure_id="sess_mine")
        assert answer.status_code == HTTPStatus.ACCEPTED
        shown_id = answer.json()["call_id"]
        headers = page.headers(session_id)
        assert (await page.broker.client.delete(f"/realtime/calls/{shown_id}", headers=headers)).status_code == 404
        told = await page.events(session_id, shown_id, "broker.error")
        assert [each.get("code") for each in told] == ["not_verified"]
        talk = await page.azure.talk()
        async with asyncio.timeout(10):
            await talk.closed.wait()
        assert talk.received == [NOTHING]
        assert page.broker.talks.active == 0
        assert (await page.broker.client.delete(f"/realtime/calls/{shown_id}", headers=headers)).status_code == 404
        await page.refused(session_id, "rtc_1", azure_id="sess_mine")  # a second time
        assert not [each for each in page.azure.handshakes if "hangup" in each.path]


async def test_call_without_minted_session_is_refused(tmp_path: Path) -> None:
    async with attaching(tmp_path) as page:
        await page.refused(uuid7(), "rtc_1", azure_id=None)
        other, mine = uuid7(), page.headers(uuid7())
        body = {"session_id": other, "call_id": "rtc_1"}
        answer = await page.broker.client.post("/realtime/calls/attach", json=body, headers=mine)
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_session")
        answer = await page.broker.client.post("/realtime/calls/attach", json=body)
        assert answer.status_code == HTTPStatus.UNAUTHORIZED


async def test_ended_call_is_refused(tmp_path: Path) -> None:
    async with attaching(tmp_path) as page:
        page.broker.state["calls"].calls._ended.add((page.azure.url, "rtc_1"))
        await page.refused(uuid7(), "rtc_1")


@pytest.mark.parametrize("told", ["refuses the question", "says nothing"])
async def test_call_that_tells_no_session_is_left(tmp_path: Path, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.attach._ANSWER_S", 0.2)

    async def quiet(talk: AzureTalk) -> None:
        async for message in talk.connection:
            talk.arrived(message)
            if told == "refuses the question":
                await talk.send({"type": "error", "error": {"code": "no", "event_id": NOTHING["event_id"]}})

    async with attaching(tmp_path) as page:
        page.azure.script = quiet
        session_id = uuid7()
        shown_id = (await page.attach(session_id, "rtc_1")).json()["call_id"]
        assert (await page.events(session_id, shown_id, "broker.error"))[0]["code"] == "not_verified"
        assert (await page.azure.talk()).received == [NOTHING]


async def test_call_that_azure_does_not_know_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """404 is "not yet" for a while, and then the end; another resource's call is known nowhere here."""
    monkeypatch.setattr("token_broker.calls.attach._PAUSES_S", (0.02,))

    def not_yet(_: Request) -> Response | None:
        return Response(404, "Not Found", Headers(), b"") if page.joins < 3 else None

    async with attaching(tmp_path) as page:
        page.azure.refuse = not_yet
        await page.attached(uuid7(), "rtc_1")
        assert page.joins == 3
        monkeypatch.setattr("token_broker.calls.attach._JOINED_BY_S", 0.2)
        page.azure.refuse = lambda _: Response(404, "Not Found", Headers(), b"")
        session_id = uuid7()
        shown_id = (await page.attach(session_id, "rtc_elsewhere")).json()["call_id"]
        assert (await page.events(session_id, shown_id, "broker.error"))[0]["code"] == "not_verified"


async def test_words_before_the_check_are_kept(tmp_path: Path) -> None:
    async def speaks(talk: AzureTalk) -> None:
        await talk.hear("item_u", "Hello?")
        await sideband(talk)

    async with attaching(tmp_path) as page:
        page.azure.script = speaks
        session_id = uuid7()
        await page.attached(session_id, "rtc_1")

        async def kept() -> list[dict[str, Any]]:
            path = f"/api/v1/memory/sessions/{session_id}/turns"
            page_of = await page.broker.client.get(path, headers=page.headers(session_id))
            turns: list[dict[str, Any]] = page_of.json().get("turns", [])
            return turns

        assert [turn["content"] for turn in await eventually(kept)] == ["Hello?"]


async def test_silent_store_attaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose the call is can't be told: 503, and Azure is not asked. The page goes on asking for answers by itself."""

    async def away(*_work: object, **_others: object) -> None:
        raise StoreAwayError("away")

    async with attaching(tmp_path, rate_limit_per_minute=3) as page:
        session_id = uuid7()
        with monkeypatch.context() as silent:
            silent.setattr(page.broker.memory.database, "write", away)
            answer = await page.attach(session_id, "rtc_1")
            assert (answer.status_code, answer.json()["code"]) == (503, "store_away")
            assert answer.headers["Retry-After"]
            assert (page.joins, page.broker.talks.active) == (0, 0)
        answers = [await page.attach(session_id, "rtc_1") for _ in range(3)]
        assert [each.status_code for each in answers] == [202, 202, 429], "limited as mints are"


async def test_check_can_be_switched_off(tmp_path: Path) -> None:
    async with attaching(tmp_path, attach_check="off") as page:
        answer = await page.attach(uuid7(), "rtc_1", azure_id="")
        assert answer.status_code == HTTPStatus.ACCEPTED
        first = await (await page.azure.talk()).next_event("session.update")
        assert first["session"]["instructions"]


@pytest.mark.slow
@pytest.mark.usefixtures("loopback")
async def test_attached_talk_from_end_to_end(tmp_path: Path) -> None:
    """Turns come from the sideband, what the page reports is the same, a second call of the token is not the plan's."""
    async with (
        serve(SimulatorConfig(ice_addresses=("127.0.0.1",))) as azure,
        run_broker(make_settings(tmp_path, azure.base_url, store_timeout_s=30)) as broker,
        httpx.AsyncClient() as browser,
    ):
        plan = await broker.plan()
        mine = {"Authorization": f"Bearer {plan['session_token']}"}
        direct = plan["connections"][0]
        assert direct["transport"] == "webrtc"

        azure.set_faults({"match": "/", "fault": "late_sideband"})

        async def call(phone: Phone) -> tuple[str, str]:
            headers = {"Authorization": f"Bearer {direct['token']}", "Content-Type": "application/sdp"}
            answer = await browser.post(direct["url"].partition("?")[0], content=await phone.offer(), headers=headers)
            return answer.headers["location"].rpartition("/")[2], answer.text

        async def attach(call_id: str) -> str:
            body = {"session_id": plan["session_id"], "call_id": call_id}
            answer = await broker.client.post("/realtime/calls/attach", json=body, headers=mine)
            assert answer.status_code == HTTPStatus.ACCEPTED, answer.text
            shown_id: str = answer.json()["call_id"]
            return shown_id

        phone = Phone(silence(1.0) + speech(1.0) + silence(2.0))
        call_id, answer = await call(phone)
        shown_id = await attach(call_id)  # Azure does not know it before its client has connected
        await phone.connect(answer)
        page = Attaching(broker, ScriptedAzure(url=azure.base_url))
        await page.events(plan["session_id"], shown_id, "broker.attached")
        second = Phone(silence(1.0))
        call_id, answer = await call(second)
        await second.connect(answer)
        told = await page.events(plan["session_id"], await attach(call_id), "broker.error")
        assert told[-1]["code"] == "not_verified"
        await second.hang_up()
        await phone.hear("output_audio_buffer.stopped", timeout_s=20)

        async def turns() -> list[dict[str, Any]]:
            found = await broker.client.get(f"/api/v1/memory/sessions/{plan['session_id']}/turns", headers=mine)
            kept: list[dict[str, Any]] = found.json().get("turns", [])
            return kept if len(kept) == 2 else []

        kept = await eventually(turns)
        assert [(turn["role"], turn["source"]) for turn in kept] == [("user", "proxy"), ("assistant", "proxy")]
        for turn in kept:
            said = {name: turn[name] for name in ("turn_id", "role", "content")}
            reported = {**said, "session_id": plan["session_id"], "agent_id": "elena"}
            assert (await broker.client.post("/conversation/turn", json=reported, headers=mine)).status_code == 200
        assert await turns() == kept
        assert (await broker.client.delete(f"/realtime/calls/{shown_id}", headers=mine)).status_code == 204

        async def over() -> bool:
            return not broker.talks.active and not broker.drain.talks

        await eventually(over)
        await phone.hang_up()
