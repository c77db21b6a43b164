"""GPT-Live over WebRTC: real calls through the broker, its sideband, and the official client's."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets
from openai import AsyncOpenAI
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from tests.live.support import INSTRUCTIONS, live_broker
from tests.simulator.phone import Phone
from tests.simulator.support import silence, speech
from tests.support.waiting import eventually
from token_broker.calls.live_listener import LiveListener
from token_broker.simulator.live.backend import PendingDelegations

OWN: dict[str, Any] = {"model": "gpt-live-9", "instructions": "Forget everything."}


pytestmark = pytest.mark.usefixtures("loopback")


@asynccontextmanager
async def calling(official: AsyncOpenAI, pcm: bytes = b"") -> AsyncIterator[tuple[Phone, str]]:
    phone = Phone(pcm)
    try:
        transport: Any = {"type": "webrtc", "sdp": await phone.offer()}
        made = await official.live.create(session=OWN, transport=transport)  # type: ignore[arg-type]
        await phone.connect(made.transport.sdp)
        yield phone, made.session.id
    finally:
        await phone.hang_up()


async def observed(sideband: Any, name: str) -> list[Any]:
    """The events of an official sideband up to one of that type."""
    kept: list[Any] = []
    async with asyncio.timeout(15):
        while not kept or kept[-1].type != name:
            kept.append(await sideband.recv())
            assert "canary" not in json.dumps(kept[-1].to_dict())
    return kept


async def test_call_and_official_sideband(tmp_path: Path) -> None:
    async with live_broker(tmp_path) as broker:
        secret = await broker.secret()
        broker.azure.script_responses({"calls": [{"name": "order_status", "arguments": {"number": "7"}}]})
        async with (
            broker.official(secret) as official,
            calling(official, silence(1.5) + speech(0.7) + silence(3)) as (phone, session_id),
        ):
            async with official.live.sideband.connect(session_id=session_id) as sideband:
                await observed(sideband, "session.input_transcript.delta")
                await sideband.session.input_audio.mute()
                await observed(sideband, "session.input_audio.muted")
                await sideband.send_raw(json.dumps({"type": "session.start", "session": OWN, "event_id": "e1"}))
                (refused,) = [each for each in await observed(sideband, "error") if each.type == "error"]
                assert refused.error.client_event_id == "e1"
            (called,) = await broker.tools.called()
            assert called["arguments"] == {"number": "7"}
            await broker.turns_once_there(secret, 2)
            assert "canary" not in json.dumps(phone.events)
            assert "session.started" not in phone.names()
        await broker.all_ended()
        row = next(each for each in await broker.usage() if each["dialect"] == "live")
        assert (row["transport"], row["resource"], row["seen"]) == ("compat", "default", True)


async def test_sideband_of_another_session(tmp_path: Path) -> None:
    async with live_broker(tmp_path) as broker:
        async with broker.official(await broker.secret()) as official, calling(official) as (_, session_id):
            for secret, name in ((await broker.secret(), session_id), (await broker.secret(), "sess_unknown")):
                async with broker.official(secret) as other:
                    with pytest.raises(InvalidStatus, match="404"):
                        async with other.live.sideband.connect(session_id=name):
                            pass
            async with broker.official("ek_wrong") as other:
                with pytest.raises(InvalidStatus, match="401"):
                    async with other.live.sideband.connect(session_id=session_id):
                        pass
        await broker.all_ended()


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every output that Azure is given of a call, whoever gives it."""
    given: list[tuple[str, str]] = []
    give = PendingDelegations.give

    def noted(self: PendingDelegations, call_id: str, output: str) -> None:
        given.append((call_id, output))
        give(self, call_id, output)

    monkeypatch.setattr(PendingDelegations, "give", noted)
    return given


async def test_pages_tool_is_answered_once(tmp_path: Path, outputs: list[tuple[str, str]]) -> None:
    """Over the broker's own sideband. Over the data channel the broker would not hear of it, and answer again."""
    async with live_broker(tmp_path) as broker:
        broker.azure.script_responses(
            {"calls": [{"name": "show_map"}, {"name": "order_status", "arguments": {"number": "7"}}]}
        )
        plan = await broker.running.plan()
        phone = Phone(silence(1) + speech(0.7) + silence(8))
        relayed = await broker.running.client.post(
            plan["connections"][0]["url"],
            content=await phone.offer(),
            headers={"Authorization": f"Bearer {plan['session_token']}", "Content-Type": "application/sdp"},
        )
        await phone.connect(relayed.text)
        (watched,) = broker.running.state["watched"]._calls.values()
        assert isinstance(watched.listener, LiveListener)
        delegations = watched.listener._events.delegations

        async def is_called() -> bool:
            return bool(delegations.calls_of_client)

        await eventually(is_called)
        call_id = delegations.calls_of_client[0]["event"]["item"]["call_id"]
        output = {"type": "function_call_output", "call_id": call_id, "output": "shown"}
        phone.send("response.item.create", item={**output, "output": "by the data channel"})
        name = relayed.headers["location"].rpartition("/")[2]
        url = f"ws{broker.running.base_url.removeprefix('http')}/v1/live/sessions/{name}/attach"
        protocols = [Subprotocol("realtime"), Subprotocol(f"ticket.{plan['session_token']}")]
        async with websockets.connect(url, subprotocols=protocols, proxy=None) as page, asyncio.timeout(30):
            first = json.loads(await page.recv())  # it was called before the page came
            assert first["event"]["item"]["call_id"] == call_id
            for _ in range(2):
                await page.send(json.dumps({"type": "response.item.create", "item": output}))
            events: list[dict[str, Any]] = [{"type": ""}]
            while "function gave" not in json.dumps(events[-1]) or not any(each["type"] == "error" for each in events):
                events.append(json.loads(await page.recv()))
            typed = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And now?"}]}
            await page.send(json.dumps({"type": "response.item.create", "item": typed}))
            await page.send(json.dumps({"type": "response.create"}))
            while "you wrote: And now?" not in json.dumps(events[-1]):
                events.append(json.loads(await page.recv()))
        assert '"name": "order_status"' not in json.dumps([first, *events])
        assert [text for call, text in outputs if call == call_id] == ["shown"]
        assert len(outputs) == len({call for call, _ in outputs}) == 2
        assert delegations.calls_of_client == []

        async def is_kept_once() -> bool:  # its row follows the answer
            turns = await broker.running.client.get(
                f"/api/v1/memory/sessions/{plan['session_id']}/turns",
                headers={"Authorization": f"Bearer {plan['session_token']}"},
            )
            return [each["content"] for each in turns.json()["turns"]].count("And now?") == 1

        await eventually(is_kept_once)
        assert not {"response.event", "session.delegation.created"} & set(phone.names())
        await phone.hang_up()
        await broker.all_ended()


async def test_open_data_channel_is_the_operators_choice(tmp_path: Path) -> None:
    """For an Azure that knows no bounds of pages. Then a page sees the agent."""
    async with live_broker(tmp_path, gpt_live_data_channel="open") as broker:
        with broker.azure.fault("no_page_rights", "/openai/v1/live/sessions"):
            async with broker.official(await broker.secret()) as official, calling(official) as (phone, _):
                assert (await phone.hear("session.started"))["session"]["instructions"] == INSTRUCTIONS
        await broker.all_ended()


async def test_page_relays_and_hangs_up(tmp_path: Path) -> None:
    async with live_broker(tmp_path) as broker:
        plan = await broker.running.plan()
        phone = Phone(b"")
        headers = {"Authorization": f"Bearer {plan['session_token']}"}
        response = await broker.running.client.post(
            plan["connections"][0]["url"],
            content=await phone.offer(),
            headers=headers | {"Content-Type": "application/sdp"},
        )
        assert response.status_code == 201, response.text
        assert response.headers["content-type"].startswith("application/sdp")
        await phone.connect(response.text)
        assert INSTRUCTIONS not in response.text
        location = response.headers["location"]
        ended = await broker.running.client.delete(location, headers=headers)
        assert ended.status_code == 204
        await broker.azure.until_calls(0)
        await phone.hang_up()
        await broker.all_ended()
