"""The end of a talk by the clock: a client without a sign of life, and Azure's own limit."""

import asyncio
import time
from typing import Any

import pytest

from tests.relay.support.azure import AzureTalk, converse, scripted_azure
from tests.relay.support.broker import broker, make_settings
from token_broker.relay.watchdog import Snapshot, Watchdog
from token_broker.server.close_codes import DONE


class Pinged:
    """Azure's socket, which answers pings."""

    def ping(self) -> bool:
        return True


def watchdog(**overrides: Any) -> Watchdog:
    return Watchdog(make_settings("http://127.0.0.1:1", idle_timeout_s=300, **overrides), 0.0)


def snapshot(**fields: Any) -> Snapshot:
    nothing: dict[str, Any] = {
        "frames_from_client": 0,
        "frames_to_client": 0,
        "pings": 0,
        "answering": False,
        "expires_s": None,
        "sending": False,
        "azure_full": False,
        "azure": Pinged(),
    }
    return Snapshot(**(nothing | fields))


def test_silent_client_is_idle() -> None:
    watched = watchdog()
    assert watched.overdue(299.0, snapshot()) is None
    ending = watched.overdue(300.0, snapshot())
    assert ending is not None
    assert (ending.code, ending.error_code) == (DONE, "idle_timeout")


@pytest.mark.parametrize("life", [{"frames_from_client": 1}, {"pings": 1}, {"answering": True}])
def test_sign_of_life_begins_the_wait_anew(life: dict[str, Any]) -> None:
    watched = watchdog()
    assert watched.overdue(200.0, snapshot(**life)) is None
    rest = life | {"answering": False}
    assert watched.overdue(499.0, snapshot(**rest)) is None
    assert watched.overdue(500.0, snapshot(**rest)) is not None


def test_end_is_announced_once_a_session() -> None:
    watched = watchdog(max_talk_s=86_400)
    assert watched.to_announce_s(3_000.0, 3_600.0) is None
    assert watched.to_announce_s(3_540.0, 3_600.0) == 60.0
    assert watched.to_announce_s(3_541.0, 3_600.0) is None
    assert watched.to_announce_s(3_541.0, None) is None
    assert watched.to_announce_s(7_140.0, 7_200.0) == 60.0, "it has moved to another session"


def test_talk_ends_before_azures_session() -> None:
    watched = watchdog(max_talk_s=86_400)
    assert watched.overdue(3_590.0, snapshot(answering=True, expires_s=3_600.0)) is None
    ending = watched.overdue(3_599.0, snapshot(answering=True, expires_s=3_600.0))
    assert ending is not None
    assert (ending.code, ending.error_code) == (DONE, "session_expired")


async def test_client_that_pings_is_not_idle() -> None:
    async with (
        scripted_azure() as azure,
        broker(azure.url, idle_timeout_s=1.5) as running,
        running.client(ping_interval=0.2) as client,
    ):
        await client.ready()
        with pytest.raises(TimeoutError):
            await client.closed(within_s=3)
        assert running.relay.active == 1


async def test_answer_under_way_is_life() -> None:
    async with (
        scripted_azure() as azure,
        broker(azure.url, idle_timeout_s=0.7) as running,
        running.client() as client,
    ):
        await client.ready()
        talk = await azure.talk()
        await talk.send({"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}})
        with pytest.raises(TimeoutError):
            await client.closed(within_s=1.5)
        await talk.send({"type": "response.done", "response": {"id": "resp_1", "status": "completed"}})
        assert await client.closed() == 1000


@pytest.mark.parametrize("compat", ["/realtime", "/voice-live/realtime"])
async def test_official_client_is_told_before_the_end(compat: str) -> None:
    async with (
        scripted_azure() as azure,
        broker(azure.url, idle_timeout_s=0.5) as running,
        running.client(path=compat) as client,
    ):
        assert await client.closed() == 1000
        assert [event["type"] for event in client.events] == ["session.created", "error"]
        assert client.events[-1]["error"]["code"] == "idle_timeout"


def living(seconds: float) -> Any:
    async def script(talk: AzureTalk) -> None:
        session = {"id": "sess_1", "expires_at": time.time() + seconds}
        await talk.send({"type": "session.created", "session": session})
        talk.arrived(await talk.connection.recv())
        await talk.send({"type": "session.updated", "session": session})
        await talk.connection.wait_closed()

    return script


async def test_client_is_warned_of_azures_limit() -> None:
    async with scripted_azure(living(3)) as azure, broker(azure.url) as running, running.client() as client:
        await client.ready()
        warned = await client.until("broker.error")
        assert (warned["code"], warned["retryable"]) == ("session_expiring", True)
        assert await client.closed() == 1000
        assert client.socket.close_reason == "Azure's session has reached its longest time: ask for a new plan"


@pytest.mark.parametrize("compat", ["/realtime", "/voice-live/realtime"])
async def test_official_client_hears_only_the_end(compat: str) -> None:
    async with scripted_azure(living(3)) as azure, broker(azure.url) as running, running.client(path=compat) as client:
        assert await client.closed() == 1000
        errors = [event["error"]["code"] for event in client.events if event["type"] == "error"]
        assert errors == ["session_expired"]


@pytest.mark.parametrize("expires_at", [0, None, "soon", True, -5, 1e30, [3]])
async def test_absurd_expiry_says_nothing(expires_at: Any) -> None:
    async def script(talk: AzureTalk) -> None:
        await talk.send({"type": "session.created", "session": {"id": "sess_1", "expires_at": expires_at}})
        await converse(talk)

    async with scripted_azure(script) as azure, broker(azure.url) as running, running.client() as client:
        await client.ready()
        await client.send({"type": "input_audio_buffer.clear"})
        await (await azure.talk()).next_event("input_audio_buffer.clear")
        await asyncio.sleep(0)
        assert all(event["type"] != "broker.error" for event in client.events)
