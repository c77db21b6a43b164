"""Talks and plans of the whole broker under a budget."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from tests.calls.test_relayed_calls import caller, calls_azure
from tests.support.broker import RunningBroker, make_settings
from tests.support.offers import OFFER
from tests.support.resources import run_resources
from tests.support.waiting import eventually
from token_broker.memory.store_errors import StoreAwayError
from token_broker.relay.watchdog import BUDGET_USED, Snapshot, Watchdog

FEW_TOKENS = 20  # less than one answer


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with run_resources(tmp_path, "one", budget_tokens_per_day=FEW_TOKENS) as several:
        yield several.broker


async def open_talk(plan: dict[str, Any]) -> ClientConnection:
    proxy = plan["connections"][-1]
    protocols = [Subprotocol(name) for name in proxy["protocols"]]
    return await connect(proxy["url"], subprotocols=protocols, proxy=None, compression=None)


async def ask(socket: ClientConnection) -> None:
    said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
    await socket.send(json.dumps({"type": "conversation.item.create", "item": said}))
    await socket.send(json.dumps({"type": "response.create"}))


@pytest.mark.slow
async def test_budgets_end_is_told_then_comes(broker: RunningBroker) -> None:
    plan = await broker.plan()
    assert [each["transport"] for each in plan["connections"]] == ["webrtc_relay", "websocket_proxy"]
    assert plan["token"] is None
    socket = await open_talk(plan)
    await ask(socket)
    async with asyncio.timeout(30):
        heard = [json.loads(text) async for text in socket]
    assert (socket.close_code, socket.close_reason) == (1000, BUDGET_USED.reason)
    told = [each["code"] for each in heard if each["type"] == "broker.error"]
    assert "budget_used" in told
    assert any(each["type"] == "response.done" for each in heard), "within the sentence it goes on"

    async def is_refused() -> bool:
        answer = (await broker.token()).response
        return answer.status_code == 429 and answer.json()["code"] == "budget_used"

    await eventually(is_refused)
    refused = (await broker.token()).response
    assert 0 < int(refused.headers["Retry-After"]) <= 86_400
    minted = await broker.client.post("/v1/realtime/client_secrets", json={})
    assert minted.status_code == 429
    url = broker.base_url.replace("http", "ws", 1) + "/v1/realtime?model=gpt-realtime"
    with pytest.raises(InvalidStatus) as denied:
        await connect(url, additional_headers={"Authorization": f"Bearer {plan['session_token']}"}, proxy=None)
    assert denied.value.response.status_code == 429


async def test_silent_store_gives_no_plan(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_work: object, **_others: object) -> None:
        raise StoreAwayError("away")

    monkeypatch.setattr(broker.memory.database, "read", away)
    answer = (await broker.token()).response
    assert (answer.status_code, answer.json()["code"]) == (503, "store_away")
    assert answer.headers["Retry-After"]


async def test_unseen_talks_may_be_allowed(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", budget_minutes_per_day=5, unseen_talks="allow") as several:
        plan = await several.broker.plan({"max_session_s": 60})
        assert [each["transport"] for each in plan["connections"]] == ["webrtc", "webrtc_relay", "websocket_proxy"]


async def test_calls_that_nobody_attached_are_unknown(tmp_path: Path) -> None:
    """Five with one secret of Azure's. With a budget the plan would have none."""
    async with calls_azure() as azure, caller(azure, tmp_path) as page:
        plan = (await page.client.post("/realtime/token", json={})).json()
        secret = {"Authorization": f"Bearer {plan['token']}", "Content-Type": "application/sdp"}
        async with httpx.AsyncClient() as browser:
            for _ in range(5):
                made = await browser.post(f"{azure.url}/openai/v1/realtime/calls", content=OFFER, headers=secret)
                assert made.status_code == 201
        mine = {"Authorization": f"Bearer {plan['session_token']}"}

        async def used() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await page.client.get("/api/v1/usage", headers=mine)).json()["usage"]
            return found

        (entry,) = await eventually(used)
        assert (entry["transport"], entry["talks"], entry["seen"], entry["complete"]) == ("webrtc", 1, False, False)
        assert [entry[name] for name in ("seconds", "responses", "input_tokens", "output_tokens", "end")] == [None] * 5


def snapshot(*, answering: bool) -> Snapshot:
    azure = cast("Any", SimpleNamespace(ping=lambda: True))
    return Snapshot(0, 0, 0, answering=answering, sending=False, azure_full=False, azure=azure)


@pytest.mark.parametrize(
    ("answering", "when_quiet", "ends_at"),
    [
        ([False] * 20, False, 15),  # nobody speaks: all that was reserved may be used
        ([False] * 20, True, 0),  # but no tokens that are not there
        ([True] * 5 + [False] * 15, False, 5),  # with what is played
        ([True] * 5 + [False] * 15, True, 5),
        ([True] * 20, True, 15),  # and not later
        ([False] * 3 + [True] * 4 + [False] * 13, False, 7),
    ],
)
def test_budget_ends_after_the_playout(answering: list[bool], when_quiet: bool, ends_at: int) -> None:
    watchdog = Watchdog(make_settings(None, None), 100.0)
    assert watchdog.overdue(100.0, snapshot(answering=True)) is None
    watchdog.end_softly(15.0, when_quiet)
    endings = [watchdog.overdue(100.0 + s, snapshot(answering=now)) for s, now in enumerate(answering)]
    assert next(s for s, ending in enumerate(endings) if ending is BUDGET_USED) == ends_at
