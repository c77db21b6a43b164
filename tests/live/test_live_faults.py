"""What Azure's faults at GPT-Live's routes lead to: a cell each, for the socket and for the offer."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import structlog
import websockets

from tests.live.support import live_broker
from tests.support.offers import OFFER
from token_broker.relay.live.azure_session import LiveUpstreams

PATH = "/openai/v1/live/sessions"


async def closed_with(plan: dict[str, Any]) -> int:
    """The close code of the plan's socket, to which nothing secret was said before."""
    proxy = plan["connections"][-1]
    async with websockets.connect(proxy["url"], subprotocols=proxy["protocols"], proxy=None) as socket:
        with contextlib.suppress(websockets.ConnectionClosedError):
            async for message in socket:
                assert "canary" not in str(message)
        return socket.close_code or 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "code", "status"),
    [
        ("refuse", {}, 4502, 502),
        ("hang", {}, 4408, 504),
        ("status", {"code": 401}, 4502, 502),
        ("status", {"code": 404}, 4502, 502),
        ("status", {"code": 429}, 4502, 502),
        ("status", {"code": 500}, 4502, 502),
    ],
    ids=["refused", "hang", "401", "404", "429", "500"],
)
async def test_faults_of_azure(tmp_path: Path, name: str, options: dict[str, Any], code: int, status: int) -> None:
    async with live_broker(tmp_path, proxy_connect_timeout_s=1, token_budget_s=2) as broker:
        plan = await broker.running.plan()
        with broker.azure.fault(name, "/openai/v1/live", **options):
            assert await closed_with(plan) == code
            headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {plan['session_token']}"}
            offered = await broker.running.client.post("/realtime/calls", content=OFFER, headers=headers)
            assert offered.status_code == status, offered.text
            assert "canary" not in offered.text
        # One at a time: an offer may make a call, so nothing is asked beside it, or again.
        assert len([each for each in broker.azure.requests if each.path == PATH and each.method == "POST"]) <= 1
        await broker.all_ended()


async def test_resource_has_it_or_not(tmp_path: Path) -> None:
    async with live_broker(tmp_path) as broker:
        relay = broker.running.relay
        resource = relay.parts.connector.pool.resources[0]
        upstreams = LiveUpstreams(relay.parts.connector, timeout_s=5)
        assert await upstreams.has(resource, timeout_s=5)
        with broker.azure.fault("status", "/openai/v1/live", code=404):
            assert not await LiveUpstreams(relay.parts.connector, timeout_s=5).has(resource, timeout_s=5)
        assert not broker.azure.transcript.talks


async def test_down_upstream_is_a_poor_plan(tmp_path: Path) -> None:
    async with live_broker(tmp_path, proxy_connect_timeout_s=1, breaker_failures=1) as broker:
        with broker.azure.fault("status", "/openai/v1/live", code=401):
            plan = await broker.running.plan()
            assert plan["outlook"] == "good"
            await closed_with(plan)
            headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {plan['session_token']}"}
            await broker.running.client.post("/realtime/calls", content=OFFER, headers=headers)
            assert (await broker.running.plan())["outlook"] == "poor"
        status = (await broker.running.client.get("/status")).json()
        told = {each["name"]: each["breaker"] for each in status["relay"]["upstreams"]}
        assert (told["gpt_live"], told["gpt_live_calls"]) == ("open", "open")
        assert {name: each["voice"] for name, each in status["agents"].items()} == {
            "ann": "cedar", "ben": "cedar", "cid": "en-US-Ava:DragonHDLatestNeural",
        }  # fmt: skip


async def test_refused_field_is_left_out(tmp_path: Path) -> None:
    more = 'noise_reduction = "near_field"\n'
    async with live_broker(tmp_path, more) as broker:
        agent = broker.running.agents["ann"]
        overlay = {**agent.session["live"], "wake_policy": {"type": "speech"}}  # sockets have none
        agent.__dict__["session"] = {"live": overlay}
        agent.__dict__.pop("settings", None)
        plan = await broker.running.plan()
        proxy = plan["connections"][-1]
        async with websockets.connect(proxy["url"], subprotocols=proxy["protocols"], proxy=None) as socket:
            assert json.loads(await socket.recv())["type"] == "broker.ready"
        status = (await broker.running.client.get("/status")).json()
        assert status["relay"]["settings_left_out"] == {"default": {"ann": {"session.wake_policy": 1}}}


async def test_azure_that_knows_no_bounds_of_pages(tmp_path: Path) -> None:
    """They are never left out by themselves: the caller is told what works, and the operator what to do."""
    async with live_broker(tmp_path) as broker:
        plan = await broker.running.plan()
        page = {"Content-Type": "application/sdp", "Authorization": f"Bearer {plan['session_token']}"}
        secret = {"Authorization": f"Bearer {await broker.secret()}"}
        body = {"session": {"model": "x"}, "transport": {"type": "webrtc", "sdp": OFFER}}
        with broker.azure.fault("no_page_rights", PATH), structlog.testing.capture_logs() as logs:
            answers = [
                await broker.running.client.post("/realtime/calls", content=OFFER, headers=page),
                await broker.running.client.post("/v1/live/sessions", json=body, headers=secret),
            ]
            for answer in answers:
                assert (answer.status_code, "canary" in answer.text) == (502, False)
            assert answers[0].json()["code"] == "azure_refused"
            assert "a WebSocket works: try the next connection" in answers[0].json()["detail"]
            assert "a WebSocket works" in answers[1].json()["error"]["message"]
            told = [each["do"] for each in logs if each["event"] == "live_session_refused"]
            assert len(told) == 2
            assert "AZURE_GPT_LIVE_DATA_CHANNEL=open" in told[0]
            # Nothing was made, nothing is left of it, and the talk goes on over the socket.
            assert broker.azure.calls == 0
            assert len([each for each in broker.azure.requests if each.path == PATH and each.method == "POST"]) == 2
            proxy = plan["connections"][-1]
            async with websockets.connect(proxy["url"], subprotocols=proxy["protocols"], proxy=None) as socket:
                assert json.loads(await socket.recv())["type"] == "broker.ready"
        await broker.all_ended()
        status = (await broker.running.client.get("/status")).json()
        assert {each["breaker"] for each in status["relay"]["upstreams"]} == {"closed"}
