"""Which resource a talk asks first, where some do not take its agent's settings."""

import ssl
from typing import Any, cast

import pytest

from strategies.base import SessionSpec
from strategies.errors import TransientError
from strategies.hedging import Hedger
from strategies.pool import Pool
from strategies.resources import Resource, Wanted
from tests.strategies.clock import Clock
from tests.strategies.fakes import SPEC
from tests.strategies.test_pool import resource
from token_broker.relay.azure.connector import NoUpstreamError, UpstreamConnector, _Handshakes
from token_broker.relay.azure.opening import SessionRefusedError
from token_broker.relay.azure.route import Route, UpstreamConnection

ROUTE = cast("Route", type("VoiceLive", (), {"name": "voice_live", "dialect": "preview"}))


async def supply(_resource: Resource) -> SessionSpec:
    return SPEC


def refused_everywhere(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, *names: str
) -> tuple[UpstreamConnector, list[str]]:
    """A connector whose resources all refuse the agent's settings, and what it asked, in order of priority."""
    pool = Pool([resource(name, priority=number) for number, name in enumerate(names)], clock=clock)
    connector = UpstreamConnector(
        Hedger(pool, after_ms=0, clock=clock),
        {name: [ROUTE] for name in names},
        credentials={},
        at_endpoint={},
        resolver=cast("Any", None),
        timeout_s=5,
        max_message_bytes=1,
        tls=ssl.create_default_context(),
    )
    asked: list[str] = []

    async def refuse(resource: Resource, _route: Route, **_others: Any) -> UpstreamConnection:
        asked.append(resource.name)
        clock.now_s += 1
        raise SessionRefusedError("not these settings")

    monkeypatch.setattr(connector, "attempt", refuse)
    return connector, asked


async def test_latest_refusals_are_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    connector, asked = refused_everywhere(monkeypatch, clock, "a", "b", "c")
    with pytest.raises(NoUpstreamError):
        await connector.connect(supply, wanted=Wanted("s", "elena", resources=("b",)))
    for _ in range(2):
        with pytest.raises(NoUpstreamError):
            await connector.connect(supply, wanted=Wanted("s", "elena"))
    assert asked == ["b", "a", "c", "b", "a", "c", "b"]
    clock.now_s += 61
    with pytest.raises(NoUpstreamError):
        await connector.connect(supply, wanted=Wanted("s", "elena"))
    assert asked[7:] == ["a", "b", "c"], "by priority, once a minute has passed"


@pytest.mark.parametrize(("running", "expected"), [(True, ["a", "b"]), (False, ["a"])])
async def test_running_talk_asks_what_rests(
    running: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A route that rests for faults may be well again: it is asked before a running talk is given up."""
    connector, asked = refused_everywhere(monkeypatch, Clock(), "a", "b")
    breaker = connector.pool.breaker("b", ROUTE.name)
    while breaker.is_closed:
        breaker.failed(breaker.permit_for_news(), TransientError("broke"), None)
    with pytest.raises(NoUpstreamError):
        await connector.connect(supply, wanted=Wanted("s", "elena", running=running))
    assert asked == expected


def test_route_of_a_busy_resource_stays_in_the_contest() -> None:
    """A hedge that finds every resource busy takes nothing from a running talk."""
    clock = Clock()
    pool = Pool([resource("a"), resource("b")], clock=clock)
    routes = [cast("Route", type("Route", (), {"name": name, "dialect": "ga"})) for name in ("voice_live", "openai")]
    ways = [(each, route) for route in routes for each in pool.resources]
    attempt = cast("Any", None)
    wanted = Wanted("s", "elena", running=True)
    contest = _Handshakes(pool, wanted, ways, attempt, last=(), deadline_s=clock() + 5, clock=clock)
    asked = [contest.next_call(busy) for busy in ((), ("a",), ("a", "b"), ("a",), ())]
    assert [call and call.name for call in asked] == [
        "connect-a-voice_live",
        "connect-b-voice_live",
        None,
        "connect-b-openai",
        "connect-a-openai",
    ]
