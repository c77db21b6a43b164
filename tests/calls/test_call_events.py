"""The stream of what the broker tells a call's page: numbered, bounded, and told again from where the page was."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.broker import RunningBroker, make_settings, run_broker
from token_broker.calls.page_events import ATTACHED, DETACHED, PageEvents
from token_broker.security.tokens import Owner, TokenSigner
from token_broker.web.requests import uuid7

KEY = "k" * 40
SIGNER = TokenSigner([SecretStr(KEY)])


async def told(events: PageEvents, after: int = 0) -> list[tuple[int, str]]:
    """What a reader gets until the call is over."""
    return [(each[0], each[1]["type"]) async for each in events.read(after, silence_s=10) if each is not None]


async def test_reader_goes_on_where_it_was() -> None:
    events = PageEvents()
    events.joined()
    events.tell("broker.tool")
    events.tell("broker.error")
    events.close()
    whole = [(1, ATTACHED), (2, "broker.tool"), (3, "broker.error"), (4, DETACHED)]
    assert await told(events) == whole
    assert await told(events, 2) == whole[2:]
    assert await told(events, 4) == []
    assert await told(events, 99) == whole  # of another process


async def test_late_reader_hears_of_attached_first() -> None:
    events = PageEvents()
    events.joined()
    for _ in range(300):
        events.tell("broker.tool")
    reading = events.read(0, silence_s=10)
    first, second = await anext(reading), await anext(reading)
    await reading.aclose()
    assert first is not None
    assert (first[0], first[1]["type"]) == (0, ATTACHED)
    assert second is not None
    assert second[0] == 46


async def test_short_gap_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.page_events._GONE_S", 0.05)
    events = PageEvents()
    events.joined()
    events.left()
    events.joined()
    events.left()
    reading = events.read(1, silence_s=10)
    gone = await anext(reading)
    assert gone is not None
    assert gone[1]["type"] == DETACHED
    events.joined()
    back = await anext(reading)
    assert back is not None
    assert back[1]["type"] == ATTACHED
    await reading.aclose()
    events.close()


async def test_page_is_heard_once_it_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.page_events._READS_ON_S", 0.0)
    events = PageEvents()
    events.joined()
    assert not events.is_heard
    reading = events.read(0, silence_s=0.01)
    await anext(reading)
    assert not events.is_heard  # it is being sent
    assert await anext(reading) is None
    assert events.is_heard
    await reading.aclose()
    assert not events.is_heard
    events.close()


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with run_broker(make_settings(tmp_path, "http://127.0.0.1:1", signing_keys=KEY)) as broker:
        yield broker


def call_of(session_id: str, azure_id: str = "rtc_1") -> str:
    return SIGNER.call_token(session_id=session_id, call_id=azure_id, endpoint="https://x.example.com", ttl_s=60)


def headers_of(session_id: str, **more: str) -> dict[str, str]:
    token = SIGNER.session_token(Owner(session_id, "anonymous", 1), ttl_s=60)
    return {"Authorization": f"Bearer {token}", **{name.replace("_", "-"): text for name, text in more.items()}}


async def test_stream_tells_numbered_events(tmp_path: Path) -> None:
    session_id = uuid7()
    async with running(tmp_path) as broker:
        events: PageEvents = broker.state["call_streams"].of(session_id, "rtc_1")
        events.joined()
        events.tell("broker.tool", name="look_up", call_id="call_1", state="running")
        shown_id, got = call_of(session_id), []
        path = f"/realtime/calls/{shown_id}/events"
        async with asyncio.timeout(10):
            async with broker.client.stream("GET", path, headers=headers_of(session_id)) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                async for line in answer.aiter_lines():
                    got.append(line)
                    if "broker.tool" in line:
                        events.close()
            again = await broker.client.get(path, headers=headers_of(session_id, Last_Event_ID=f"{events.name}-2"))
            anew = await broker.client.get(path, headers=headers_of(session_id, Last_Event_ID="another-2"))
        data: list[dict[str, Any]] = [json.loads(line[6:]) for line in got if line.startswith("data: ")]
        assert [each["type"] for each in data] == [ATTACHED, "broker.tool", DETACHED]
        assert data[0]["call_id"] == data[2]["call_id"] == shown_id
        assert [line for line in got if line.startswith("id: ")] == [
            f"id: {events.name}-{number}" for number in (1, 2, 3)
        ]
        assert [line for line in again.text.splitlines() if line.startswith("id: ")] == [f"id: {events.name}-3"]
        assert "broker.tool" in anew.text  # of another replica


async def test_stream_is_its_sessions_alone(tmp_path: Path) -> None:
    mine, other = uuid7(), uuid7()
    async with running(tmp_path) as broker:
        broker.state["call_streams"].of(mine, "rtc_1").close()
        wrong = [
            (f"/realtime/calls/{call_of(mine)}/events", headers_of(other)),
            (f"/realtime/calls/{call_of(other)}/events", headers_of(other)),  # it never had that call
            (f"/realtime/calls/{call_of(mine, 'rtc_2')}/events", headers_of(mine)),
            ("/realtime/calls/rtc_1/events", headers_of(mine)),
        ]
        for path, headers in wrong:
            answer = await broker.client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_call"), path
        answer = await broker.client.get(f"/realtime/calls/{call_of(mine)}/events")
        assert answer.status_code == 401


async def test_streams_of_a_call_are_few(tmp_path: Path) -> None:
    session_id = uuid7()
    async with running(tmp_path) as broker:
        events: PageEvents = broker.state["call_streams"].of(session_id, "rtc_1")
        readers = [events.read(0, silence_s=60) for _ in range(4)]
        reading = [asyncio.ensure_future(anext(reader)) for reader in readers]
        await asyncio.sleep(0)
        path = f"/realtime/calls/{call_of(session_id)}/events"
        answer = await broker.client.get(path, headers=headers_of(session_id))
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")
        for each in reading:
            each.cancel()
        await asyncio.wait(reading)
