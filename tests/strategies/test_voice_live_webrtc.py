"""Which resources have Voice Live by WebRTC, and when a token request is answered by it."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from pydantic import SecretStr

from strategies.base import EphemeralGrant, Grant, SessionSpec
from strategies.chain import Chain, ChainLink, ChainResult, Link, RetryPolicy, WebSocketProxy
from strategies.endpoint import Target, parse_target
from strategies.errors import MintError, MisconfiguredError, PermanentError, TimedOutError, TransientError
from strategies.pool import Pool
from strategies.resources import Resource, Wanted
from strategies.voice_live_webrtc import VoiceLiveWebRtc, WebRtcAvailability, WebRtcMode
from tests.strategies.clock import Clock
from tests.strategies.fakes import SPEC

UNIFIED = "https://{}.services.ai.azure.com"
DIRECT = "https://{}.openai.azure.com"
WANTED = Wanted(session_id="s", agent_id="elena")


def resource(name: str, url: str = UNIFIED, *, priority: int = 1) -> Resource:
    target = parse_target(url.format(name))
    return Resource(name, target, "gpt-realtime", "gpt-realtime", "transcribe", priority=priority)


class Azure:
    """What control sockets answer: an error, nothing (it has it), or never."""

    def __init__(self, *answers: MintError | str | None) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def probe(self, resource: Resource) -> None:
        self.asked.append(resource.name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "hangs":
            await asyncio.Event().wait()
        if isinstance(answer, MintError):
            raise answer


class Minting:
    """A strategy that mints, or finds no route."""

    def __init__(self, name: str, *, works: bool) -> None:
        self.name = name
        self.works = works

    @staticmethod
    def applies(target: Target) -> bool:
        return bool(target.base)

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> EphemeralGrant:
        assert spec is SPEC
        if not self.works:
            raise PermanentError("no such route", status=404)
        return EphemeralGrant(
            strategy=self.name, token=SecretStr("ek_x"), expires_at=None, expires_in_s=60, received_at_s=0,  # type: ignore[arg-type]  # not looked at
            endpoint="https://x", dialect="ga", voice="marin", resource="a",
        )  # fmt: skip


def known(*have: Resource, all_of: Sequence[Resource], mode: WebRtcMode = "auto") -> WebRtcAvailability:
    availability = WebRtcAvailability(all_of, mode=mode, probe=Azure(None).probe)
    for each in have:
        availability._known[each.name].has = True
    return availability


async def asked(
    links: Sequence[ChainLink], pool: Pool, *, signals: bool = True, sockets_only: str = ""
) -> tuple[Grant | None, ChainResult]:
    async def supply(_resource: Resource) -> SessionSpec:
        return SPEC

    result = await Chain(pool, links, policy=RetryPolicy(backoff_s=0)).mint(
        supply, wanted=WANTED, deadline_s=time.monotonic() + 30, signals=signals, sockets_only=sockets_only
    )
    return result.grant, result


@pytest.mark.parametrize(
    ("answer", "state", "has"),
    [
        (None, "available", True),
        (PermanentError("x", status=404), "missing", False),
        (MisconfiguredError("x", status=401), "missing", False),
        (MisconfiguredError("x", status=403), "unknown", False),
        (TransientError("x", status=503), "unknown", False),
        (TimedOutError("x"), "unknown", False),
    ],
)
async def test_first_look_decides(answer: MintError | None, state: str, has: bool) -> None:
    a = resource("a")
    availability = WebRtcAvailability([a, resource("b", DIRECT)], mode="auto", probe=Azure(answer).probe)
    await availability.look(a)
    (status,) = availability.snapshot()  # a direct endpoint can't have it
    assert (status.resource, status.state, availability.has("a"), availability.has("b")) == ("a", state, has, False)
    assert status.why == (None if answer is None else "x")


async def test_other_answers_keep_what_is_known() -> None:
    a, clock = resource("a"), Clock()
    azure = Azure(None, TransientError("x", status=500), PermanentError("x", status=404), TimedOutError("x"), None)
    availability = WebRtcAvailability([a], mode="auto", probe=azure.probe, clock=clock)
    seen = []
    for _ in range(5):
        await availability.look(a)
        seen.append(availability.has("a"))
    assert seen == [True, True, False, False, True]
    clock.now_s += 7
    assert availability.snapshot()[0].checked_ago_s == 7


async def test_it_looks_again() -> None:
    """At the start, soon after a try that said nothing, and from then on each hour."""
    a = resource("a")
    azure = Azure(TimedOutError("x"), TransientError("x"), None)
    availability = WebRtcAvailability([a], mode="auto", probe=azure.probe, every_s=3600, again_s=0.01)
    availability.start()
    async with asyncio.timeout(15):
        while not availability.has("a"):  # noqa: ASYNC110  # it has no event of its own
            await asyncio.sleep(0.01)
    await availability.aclose()
    assert azure.asked == ["a"] * 3


async def test_talk_that_misses_it_has_it_looked_for() -> None:
    """Plans leave it out at once, and the next look, which comes soon, brings it back."""
    a = resource("a")
    azure = Azure(None, PermanentError("x", status=404), None)
    availability = WebRtcAvailability([a], mode="auto", probe=azure.probe, every_s=3600, again_s=0.01)
    availability.start()
    await availability.first_known("a", timeout_s=15)
    availability.note("a", TransientError("x", status=503))
    availability.note("unknown", PermanentError("x", status=404))
    assert availability.has("a")
    availability.note("a", PermanentError("gone", status=404))
    (status,) = availability.snapshot()
    assert (status.state, status.why) == ("missing", "gone")
    async with asyncio.timeout(15):
        while not availability.has("a"):  # noqa: ASYNC110  # it has no event of its own
            await asyncio.sleep(0.01)
    await availability.aclose()
    assert azure.asked == ["a"] * 3
    fixed = WebRtcAvailability([a], mode="on", probe=azure.probe)
    fixed.note("a", PermanentError("x", status=404))
    assert fixed.has("a")


def test_unknown_is_looked_for_more_often_than_missing() -> None:
    availability = WebRtcAvailability([resource("a")], mode="auto", probe=Azure(None).probe)
    known_a = availability._known["a"]
    pauses_s = {}
    for has in (None, True, False):
        known_a.has, known_a.failures = has, 1
        pauses_s[has] = [availability._pause_s(known_a)]
        known_a.failures = 40
        pauses_s[has].append(availability._pause_s(known_a))
    assert pauses_s == {None: [30, 300], True: [30, 300], False: [30, 3600]}


@pytest.mark.parametrize(("mode", "has"), [("on", True), ("off", False)])
async def test_switch_needs_no_look(mode: WebRtcMode, has: bool) -> None:
    azure = Azure(None)
    availability = WebRtcAvailability([resource("a")], mode=mode, probe=azure.probe)
    availability.start()
    await availability.first_known("a", timeout_s=60)
    assert availability.has("a") is has
    assert not azure.asked
    await availability.aclose()


async def test_plan_waits_for_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a look that is under way, and for one that hangs no longer than its bound."""
    a = resource("a")
    quick = WebRtcAvailability([a], mode="auto", probe=Azure(None).probe)
    quick.start()
    grant, _ = await asked([VoiceLiveWebRtc(quick), WebSocketProxy()], Pool([a]))
    assert (grant and grant.strategy) == "voice_live_webrtc"
    await quick.aclose()
    monkeypatch.setattr("strategies.voice_live_webrtc._FIRST_TRY_S", 0.05)
    slow = WebRtcAvailability([a], mode="auto", probe=Azure("hangs").probe)
    slow.start()
    grant, _ = await asked([VoiceLiveWebRtc(slow), WebSocketProxy()], Pool([a]))
    assert (grant and grant.strategy) == "websocket_proxy"
    await slow.aclose()


@pytest.mark.parametrize(
    ("mints", "has", "signals", "sockets_only", "wins"),
    [
        (True, True, True, "", "ga"),
        (False, True, True, "", "voice_live_webrtc"),
        (False, True, False, "", "websocket_proxy"),
        (False, False, True, "", "websocket_proxy"),
        (True, True, True, "its agent says so", "voice_live_webrtc"),
        (True, True, False, "its agent says so", "websocket_proxy"),
    ],
)
async def test_order_of_grants(mints: bool, has: bool, signals: bool, sockets_only: str, wins: str) -> None:
    a = resource("a")
    pool = Pool([a])
    signalling = VoiceLiveWebRtc(known(*([a] if has else []), all_of=[a]))
    links: list[ChainLink] = [Link(a, Minting("ga", works=mints)), signalling, WebSocketProxy()]
    grant, result = await asked(links, pool, signals=signals, sockets_only=sockets_only)
    assert (grant and grant.strategy) == wins
    outcomes = {attempt.strategy: attempt.outcome for attempt in result.attempts}
    assert outcomes["ga"] == ("skipped" if sockets_only else "minted" if mints else "permanent")
    assert ("voice_live_webrtc" in outcomes) == (signals and wins != "ga")


async def test_first_in_the_list_comes_before_mints() -> None:
    a = resource("a")
    links: list[ChainLink] = [
        VoiceLiveWebRtc(known(a, all_of=[a])),
        Link(a, Minting("ga", works=True)),
        WebSocketProxy(),
    ]
    grant, _ = await asked(links, Pool([a]))
    assert (grant and grant.strategy) == "voice_live_webrtc"
    grant, _ = await asked(links, Pool([a]), signals=False)
    assert (grant and grant.strategy) == "ga"


async def test_any_permitted_resource_may_have_it() -> None:
    a, b = resource("a"), resource("b", priority=2)
    pool = Pool([a, b])
    links: list[ChainLink] = [VoiceLiveWebRtc(known(b, all_of=[a, b])), WebSocketProxy()]
    grant, _ = await asked(links, pool)
    assert (grant and (grant.strategy, grant.resource)) == ("voice_live_webrtc", "b")
    # A way that rests is none.
    permit = pool.admit(b, "voice_live_webrtc", agent_id="elena")
    assert permit is not None
    pool.refused(permit, PermanentError("x", status=404))
    grant, _ = await asked(links, pool)
    assert (grant and grant.strategy) == "websocket_proxy"


async def test_agent_of_azures_has_its_own_way() -> None:
    a = resource("a")
    links: list[ChainLink] = [
        VoiceLiveWebRtc(known(all_of=[a]), of_agents={"elena": known(a, all_of=[a])}),
        WebSocketProxy(),
    ]
    grant, _ = await asked(links, Pool([a]))
    assert (grant and grant.strategy) == "foundry_agent"
