"""A plan's relayed call at the simulated Azure: the broker keeps its turns, and what the page reports is the same."""

from pathlib import Path
from typing import Any

import pytest

from tests.observability.scrape import scrape
from tests.simulator.phone import Phone
from tests.simulator.support import silence, speech
from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.waiting import eventually
from token_broker.simulator import SimulatorConfig, serve

pytestmark = pytest.mark.usefixtures("loopback")


async def turns_of(broker: RunningBroker, plan: dict[str, Any]) -> list[dict[str, Any]]:
    mine = {"Authorization": f"Bearer {plan['session_token']}"}
    page = await broker.client.get(f"/api/v1/memory/sessions/{plan['session_id']}/turns", headers=mine)
    turns: list[dict[str, Any]] = page.json().get("turns", [])
    return turns


@pytest.mark.slow
async def test_reported_turn_is_kept_once(tmp_path: Path) -> None:
    async with (
        serve(SimulatorConfig(ice_addresses=("127.0.0.1",))) as azure,
        run_broker(make_settings(tmp_path, azure.base_url)) as broker,
    ):
        plan = await broker.plan()
        mine = {"Authorization": f"Bearer {plan['session_token']}"}
        phone = Phone(speech(1.0) + silence(2.0))
        sdp, headers = await phone.offer(), {**mine, "Content-Type": "application/sdp"}
        answer = await broker.client.post("/realtime/calls", content=sdp, headers=headers)
        assert answer.status_code == 201, answer.text
        await phone.connect(answer.text)
        await phone.hear("output_audio_buffer.stopped")

        async def kept() -> bool:
            return len(await turns_of(broker, plan)) == 2

        await eventually(kept)
        where = {"transport": "webrtc_relay", "agent": "elena", "resource": "default"}
        assert (await scrape(broker.client)).of("token_broker_turn_latency_seconds_count", **where) == 1
        user, assistant = await turns_of(broker, plan)
        assert [(turn["role"], turn["source"]) for turn in (user, assistant)] == [
            ("user", "proxy"),
            ("assistant", "proxy"),
        ]
        for turn in (user, assistant):
            said = {name: turn[name] for name in ("turn_id", "role", "content")}
            reported = {**said, "session_id": plan["session_id"], "agent_id": "elena"}
            assert (await broker.client.post("/conversation/turn", json=reported, headers=mine)).status_code == 200
        assert await turns_of(broker, plan) == [user, assistant]
        assert (await broker.client.delete(answer.headers["location"], headers=mine)).status_code == 204

        async def over() -> bool:
            return not broker.talks.active and not azure.calls and not broker.drain.talks

        await eventually(over)
        assert await turns_of(broker, plan) == [user, assistant]
        await phone.hang_up()
