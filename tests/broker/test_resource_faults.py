"""One talk a cell: a fault at the first resource, at all but one, or at all, for each way to Azure."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from strategies.endpoint import parse_target
from strategies.resources import Resource, by_preference
from tests.support.broker import RunningBroker, run_broker
from tests.support.machine import retry_if_host_busy
from tests.support.offers import OFFER
from tests.support.resources import settings_of, simulator
from tests.support.signalling import signalling_page
from tests.support.sockets import refused_port
from token_broker.security.tokens import ANONYMOUS, Owner
from token_broker.settings import Settings

NAMES = ("one", "two", "three")
SESSION = "session-of-the-matrix"
OWNER = Owner(SESSION, ANONYMOUS, 1)
TOLD = {"websocket_proxy", "nothing_minted", "azure_refused", "azure_timed_out", "4502", "4408"}
PROMISED_S = 6

FAULTS: dict[str, dict[str, Any]] = {
    "hang": {"fault": "hang"},
    "slow": {"fault": "slow", "seconds": 5},
    "401": {"fault": "status", "code": 401},
    "404": {"fault": "status", "code": 404},
    "429": {"fault": "status", "code": 429},
    "429-retry-after": {"fault": "status", "code": 429, "headers": {"retry-after": "30"}},
    "500": {"fault": "status", "code": 500},
    "503": {"fault": "status", "code": 503},
    "drops": {"fault": "reset"},
}
UNREACHABLE = "https://nowhere.invalid"
EXTENTS = {"first": 1, "all-but-one": 2, "all": 3}


@dataclass(frozen=True, slots=True)
class Taken:
    """What a client got: the resource that has its talk, or None and what it was told."""

    resource: str | None
    told: str = ""


async def mint(broker: RunningBroker) -> Taken:
    plan = await broker.plan({"session_id": SESSION})
    return Taken(plan["resource"], plan["strategy"])


async def sdp(broker: RunningBroker) -> Taken:
    headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {session_token(broker)}"}
    answer = await broker.client.post("/realtime/calls", content=OFFER, headers=headers)
    if answer.status_code != httpx.codes.CREATED:
        return Taken(None, answer.json()["code"])
    endpoint = broker.signer.read_call_token(answer.headers["location"].rpartition("/")[2]).endpoint
    return Taken(next(each.name for each in broker.settings.resources if each.target.openai_base == endpoint))


async def proxy(broker: RunningBroker) -> Taken:
    ticket = broker.signer.ticket(OWNER, agent_id="elena", ttl_s=60)
    return await talk(broker, f"/api/v1/voice/voicelive/{SESSION}", f"ticket.{ticket}")


async def compat(broker: RunningBroker) -> Taken:
    return await talk(broker, "/v1/realtime?model=x", f"openai-insecure-api-key.{session_token(broker)}")


async def signalled(broker: RunningBroker) -> Taken:
    ticket = broker.signer.ticket(OWNER, agent_id="elena", ttl_s=60)
    url = f"ws{broker.base_url.removeprefix('http')}/api/v1/voice/voicelive/{SESSION}?media=webrtc"
    async with signalling_page(url, ["realtime", f"ticket.{ticket}"]) as page:
        try:
            await page.until("broker.ready")
        except ConnectionClosed:
            return Taken(None, str(page.socket.close_code))
        return connected(broker)


WAYS: dict[str, Callable[[RunningBroker], Awaitable[Taken]]] = {
    "mint": mint, "sdp": sdp, "proxy": proxy, "compat": compat, "signalled": signalled,
}  # fmt: skip


def session_token(broker: RunningBroker) -> str:
    return broker.signer.session_token(OWNER, ttl_s=60, agent_id="elena")


async def talk(broker: RunningBroker, path: str, credential: str) -> Taken:
    """Opens a talk. The first event comes when Azure has the agent's session."""
    protocols = [Subprotocol("realtime"), Subprotocol(credential)]
    url = f"ws{broker.base_url.removeprefix('http')}{path}"
    async with connect(url, subprotocols=protocols, proxy=None, compression=None) as socket:
        try:
            while json.loads(await socket.recv())["type"] == "error":
                pass  # compatible endpoints tell why they close
        except ConnectionClosed:
            return Taken(None, str(socket.close_code))
        return connected(broker)


def connected(broker: RunningBroker) -> Taken:
    upstreams = broker.relay.snapshot().upstreams
    (found,) = [each.resource for each in upstreams if each.last_outcome == "connected"]
    return Taken(found)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch, calls_without_media: None) -> None:
    del calls_without_media
    monkeypatch.setattr("token_broker.api.offers._OFFER_SHARE_S", 0.5)


def short_settings(folder: Path, endpoints: dict[str, str], way: str) -> Settings:
    return settings_of(
        folder,
        endpoints,
        {},
        hedge_after_ms=300,
        token_budget_s=4,  # a busy machine has 2 s more to tell its client
        proxy_connect_timeout_s=4,
        retry_attempts=1,
        voice_live_webrtc="on" if way == "signalled" else "off",
    )


def preferred() -> list[str]:
    """The resources as the session prefers them."""
    target = parse_target("https://x.openai.azure.com")
    resources = [Resource(name, target, "gpt-realtime", "gpt-realtime", "transcribe") for name in NAMES]
    return [each.name for each in by_preference(resources, SESSION)]


@retry_if_host_busy()
@pytest.mark.parametrize("fault", [*FAULTS, "refused", "dns"])
async def test_fault_costs_no_talk(fault: str, tmp_path: Path) -> None:
    """The extents side by side, since most of a cell is waiting."""
    cells = await asyncio.gather(*(wrong_in(fault, extent, tmp_path / extent) for extent in EXTENTS))
    assert [each for wrong in cells for each in wrong] == []


async def wrong_in(fault: str, extent: str, folder: Path) -> list[str]:
    """What is not as it must be where the fault is at so many resources, by the way to talk."""
    count = EXTENTS[extent]
    faulty, healthy = preferred()[:count], preferred()[count:]
    async with contextlib.AsyncExitStack() as stack:
        azures = {name: await stack.enter_async_context(simulator(name)) for name in NAMES}
        endpoints = {name: azure.base_url for name, azure in azures.items()}
        for name in faulty:
            if fault == "refused":
                endpoints[name] = f"http://127.0.0.1:{stack.enter_context(refused_port())}"
            elif fault == "dns":
                endpoints[name] = UNREACHABLE
            else:
                azures[name].set_faults({"match": "/", **FAULTS[fault]})

        async def outcome(way: str) -> tuple[Taken, float]:
            (folder / way).mkdir(parents=True, exist_ok=True)
            # A broker that knows nothing yet of the fault.
            async with run_broker(short_settings(folder / way, endpoints, way)) as broker:
                began_s = time.monotonic()
                return await WAYS[way](broker), time.monotonic() - began_s

        outcomes = await asyncio.gather(*(outcome(way) for way in WAYS))
        wrong = [
            f"{extent} {way}: {found} after {took_s:.1f} s"
            for way, (found, took_s) in zip(WAYS, outcomes, strict=True)
            if not is_right(found, healthy) or took_s >= PROMISED_S
        ]
        # What makes a call is asked of one resource after another, of each once.
        for name in set(azures) & set(faulty) if fault not in {"refused", "dns"} else ():
            asked = [each.path for each in azures[name].requests].count("/voice-live/realtime/calls")
            if asked != 1:
                wrong.append(f"{extent}: {name} was asked for {asked} calls")
    return wrong


def is_right(found: Taken, healthy: list[str]) -> bool:
    if healthy:
        return found.resource in healthy
    return found.resource is None and found.told in TOLD
