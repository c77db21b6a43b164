"""The end of a talk by the clock: a client without a sign of life, and Azure's own limit."""

import asyncio
from typing import Any

import pytest

from tests.relay.support.azure import AzureTalk, converse, scripted_azure
from tests.relay.support.broker import broker, make_settings
from tests.support.machine import retry_if_host_busy
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


@retry_if_host_busy()
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


@pytest.mark.slow
@retry_if_host_busy()
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
