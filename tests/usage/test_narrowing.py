"""A mint may be narrowed, and nothing that is minted with it is wider."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from tests.support.broker import RunningBroker, make_settings
from tests.support.client_secrets import secret_claims
from tests.support.offers import OFFER
from tests.support.resources import run_resources
from token_broker.relay.watchdog import Watchdog
from token_broker.security.tokens import Narrowing

PAGE = "https://app.example.com"
MINT = "/v1/realtime/client_secrets"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    async with run_resources(tmp_path, "one", allowed_origins=(PAGE, "https://other.example.com")) as several:
        yield several.broker


def bearer(token: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **headers}


def transports(plan: dict[str, Any]) -> list[str]:
    return [each["transport"] for each in plan["connections"]]


async def secret(broker: RunningBroker, with_secret: str | None = None, **metadata: Any) -> httpx.Response:
    headers = bearer(with_secret) if with_secret else {}
    return await broker.client.post(MINT, json={"metadata": metadata}, headers=headers)


async def opens(broker: RunningBroker, token: str, origin: str | None = None) -> int:
    """The status of a compatible socket's handshake."""
    url = broker.base_url.replace("http", "ws", 1) + "/v1/realtime?model=gpt-realtime"
    sent = None if origin is None else Origin(origin)
    try:
        async with connect(url, additional_headers=bearer(token), origin=sent, proxy=None):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


@pytest.mark.parametrize(
    ("own", "wanted", "both"),
    [
        (Narrowing(), Narrowing(60), Narrowing(60)),
        (Narrowing(60), Narrowing(600), Narrowing(60)),
        (Narrowing(60), Narrowing(), Narrowing(60)),
        (
            Narrowing(None, ("webrtc_relay", "websocket")),
            Narrowing(None, ("websocket",)),
            Narrowing(None, ("websocket",)),
        ),
        (Narrowing(origin=PAGE), Narrowing(origin=PAGE), Narrowing(origin=PAGE)),
        (Narrowing(60, ("websocket",), PAGE), Narrowing(), Narrowing(60, ("websocket",), PAGE)),
    ],
)
def test_narrower_of_two_holds(own: Narrowing, wanted: Narrowing, both: Narrowing) -> None:
    assert own.within(wanted) == both


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        (Narrowing(None, ("websocket",)), Narrowing(None, ("webrtc",))),
        (Narrowing(origin=PAGE), Narrowing(origin="https://other.example.com")),
    ],
)
def test_nothing_in_common_is_refused(own: Narrowing, wanted: Narrowing) -> None:
    with pytest.raises(ValueError, match="credential"):
        own.within(wanted)


async def test_bounded_plan_has_no_unseen_transport(broker: RunningBroker) -> None:
    assert transports(await broker.plan()) == ["webrtc", "webrtc_relay", "websocket_proxy"]
    plan = await broker.plan({"max_session_s": 600})
    assert transports(plan) == ["webrtc_relay", "websocket_proxy"]
    assert plan["token"] is None
    ticket = broker.signer.read_ticket(plan["connections"][-1]["protocols"][1].removeprefix("ticket."))
    assert ticket.owner.narrowed == Narrowing(600)
    again = await broker.plan(
        {"session_id": plan["session_id"], "max_session_s": 6000}, X_Session_Token=plan["session_token"]
    )
    assert broker.signer.read_session_token(again["session_token"]).owner.narrowed == Narrowing(600)


async def test_plan_has_only_wanted_transports(broker: RunningBroker) -> None:
    assert transports(await broker.plan({"transports": ["websocket_proxy"]})) == ["websocket_proxy"]
    plan = await broker.plan({"transports": ["webrtc"]})
    assert transports(plan) == ["webrtc"]
    offered = await broker.client.post(
        "/realtime/calls", content=OFFER, headers=bearer(plan["session_token"], **{"Content-Type": "application/sdp"})
    )
    assert (offered.status_code, offered.json()["code"]) == (403, "transport_refused")
    assert await opens(broker, plan["session_token"]) == 403
    none_left = await broker.token({"transports": ["webrtc"], "max_session_s": 60})
    assert (none_left.response.status_code, none_left.response.json()["code"]) == (409, "no_transport")


@pytest.mark.parametrize(
    "body",
    [
        {"max_session_s": 9},
        {"max_session_s": 86_401},
        {"max_session_s": "60"},
        {"transports": []},
        {"transports": ["carrier_pigeon"]},
        {"origin": "app.example.com"},
        {"origin": "https://app.example.com/path"},
    ],
)
async def test_wrong_narrowing_is_refused(broker: RunningBroker, body: dict[str, Any]) -> None:
    assert (await broker.token(body)).response.status_code == 422


async def test_origin_is_held_to(broker: RunningBroker) -> None:
    minted = (await secret(broker, origin=PAGE)).json()["value"]
    statuses = [await opens(broker, minted, origin) for origin in (PAGE, "https://other.example.com", None)]
    assert statuses == [101, 403, 403]
    plan = await broker.plan({"origin": PAGE})
    assert "webrtc" not in transports(plan)
    proxy = plan["connections"][-1]
    protocols = [Subprotocol(name) for name in proxy["protocols"]]
    async with connect(proxy["url"], subprotocols=protocols, origin=None, proxy=None) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4403


async def test_uses_are_counted_for_their_own(broker: RunningBroker) -> None:
    parent = (await secret(broker, uses=3)).json()["value"]
    child = (await secret(broker, parent, uses=1)).json()["value"]
    wider = (await secret(broker, child, uses=3)).json()["value"]
    assert [await opens(broker, token) for token in (child, wider, child, parent, parent, parent)] == [
        *(101, 401, 401),
        *(101, 101, 401),
    ]


async def test_secrets_secret_is_no_wider(broker: RunningBroker) -> None:
    parent = (await secret(broker, max_session_s=60, transports=["webrtc"])).json()["value"]
    child = (await secret(broker, parent, max_session_s=600)).json()["value"]
    assert secret_claims(broker.signer, child).owner.narrowed == Narrowing(60, ("webrtc",))
    assert await opens(broker, child) == 403
    assert (await secret(broker, parent, transports=["websocket"])).status_code == 422


@pytest.mark.parametrize(("age_s", "over_at_s"), [(0.0, 60.0), (45.0, 15.0), (90.0, 0.0)])
def test_narrowed_talk_ends_in_time(age_s: float, over_at_s: float) -> None:
    watchdog = Watchdog(make_settings(None, None), 100.0, longest_s=60, age_s=age_s)
    if over_at_s:
        assert watchdog.overdue(99.9 + over_at_s, None) is None
    ending = watchdog.overdue(100.0 + over_at_s, None)
    assert ending is not None
    assert ending.outcome == "longest_time"
